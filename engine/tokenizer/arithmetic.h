// Writer of the quickstart's tokenizer: byte-level BPE without merges over the few characters that arithmetic needs.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_ARITHMETIC_H_
#define LOCKSTEP_ENGINE_TOKENIZER_ARITHMETIC_H_

#include <string>

#include "absl/status/status.h"

namespace lockstep {

// Characters with a token of their own, in the order of their ids (from 0); ids after them: <|endoftext|>, <|pad|>.
constexpr char kArithmeticCharacters[] = "0123456789+-*=;:. \nQAc";

// Writes DIR/tokenizer.json and DIR/tokenizer_config.json (eos <|endoftext|>, pad <|pad|>). DIR must exist. The files
// load in Hugging Face's tokenizers too.
absl::Status MakeArithmeticTokenizer(const std::string& dir);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TOKENIZER_ARITHMETIC_H_
