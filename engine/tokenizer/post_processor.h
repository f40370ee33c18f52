// The post_processor of a tokenizer.json: special tokens put around a text, such as Llama 3's <|begin_of_text|>.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_POST_PROCESSOR_H_
#define LOCKSTEP_ENGINE_TOKENIZER_POST_PROCESSOR_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lockstep {

struct SpecialFrame {
  std::vector<int32_t> before, after;
};

// ByteLevel (which adds nothing), TemplateProcessing, a Sequence of them, or null. Every id is below vocab_size.
absl::StatusOr<SpecialFrame> ReadPostProcessor(const nlohmann::json& value, size_t vocab_size, const std::string& path);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TOKENIZER_POST_PROCESSOR_H_
