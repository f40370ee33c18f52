// The first cut of a text, before merges: a sequence of steps over pieces, as tokenizer.json's pre_tokenizer describes.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_PRE_TOKENIZER_H_
#define LOCKSTEP_ENGINE_TOKENIZER_PRE_TOKENIZER_H_

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

class PreTokenizer {
 public:
  // ByteLevel, Split (Regex or String; Isolated or Removed), Digits, and Sequence of them; a ByteLevel must be among
  // them, because nothing else turns text into the byte alphabet. `path` is for messages.
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> FromJson(const nlohmann::json& value, const std::string& path);
  ~PreTokenizer();

  // Pieces of `text` (valid UTF-8), in order. RESOURCE_EXHAUSTED when a regular expression needs more than its budget.
  absl::StatusOr<std::vector<std::string>> Cut(std::string_view text) const;

 private:
  struct Step;
  PreTokenizer();
  absl::Status Append(const nlohmann::json& value, const std::string& path);
  std::vector<std::unique_ptr<Step>> steps_;
  bool byte_level_ = false;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TOKENIZER_PRE_TOKENIZER_H_
