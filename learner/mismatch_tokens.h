// Which tokens `lockstep mismatch` compares its engines on: prompts to sample from, or prompts with responses.
#ifndef LOCKSTEP_LEARNER_MISMATCH_TOKENS_H_
#define LOCKSTEP_LEARNER_MISMATCH_TOKENS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "engine/tokenizer/tokenizer.h"
#include "learner/paged_decode.h"

namespace lockstep {

struct TokenFileOptions {
  std::string path;
  std::string model_dir;        // of the chat template
  std::string prompt_template;  // of texts; see prompt_templates.h
  const ModelConfig* config = nullptr;
  const Tokenizer* tokenizer = nullptr;  // null: lines have token ids
  uint64_t limit = 0;                    // lines that are read, from the head; 0: all
  int64_t max_tokens = 0;                // response tokens that must fit after a prompt
};

// A prompt a line: {"prompt": TEXT} (or problem, question, input), a bare JSON text, or {"tokens": [...]}. Errors are
// one line, FILE:LINE: what is wrong.
absl::StatusOr<std::vector<PromptedTokens>> ReadPrompts(const TokenFileOptions& options);

// A prompt and a response a line:
//   {"prompt": TEXT, "tokens": [...]} or {"prompt_tokens": [...], "tokens": [...]}   as `lockstep generate` writes
//   {"prompt": TEXT, "response": TEXT}
//   {"tokens": [...], "num_prompt_tokens": K}                                        both in one, as `lockstep score`
absl::StatusOr<std::vector<PromptedTokens>> ReadResponses(const TokenFileOptions& options);

// "": max_tokens for each of `count` samples. "spread": sample k of count gets max_tokens (k + 1) / count, rounded up,
// so that a model that never ends a response has short ones and long ones too. "64,128,...": the list in rotation, none
// above max_tokens.
absl::StatusOr<std::vector<int64_t>> SampleLengths(const std::string& text, int64_t max_tokens, size_t count);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_MISMATCH_TOKENS_H_
