#include "learner/token_ids.h"

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"

namespace lockstep {

absl::Status AppendTokenIds(const nlohmann::json& list, const char* key, int64_t vocab_size,
                            std::vector<int32_t>* tokens) {
  if (!list.is_array()) return absl::InvalidArgumentError(absl::StrCat(key, " must be an array of token ids"));
  tokens->reserve(tokens->size() + list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_number_unsigned() || list[i].get<uint64_t>() >= static_cast<uint64_t>(vocab_size)) {
      return absl::InvalidArgumentError(absl::StrCat(key, "[", i, "] is ", PrintableJson(list[i]),
                                                     ", must be an id of the vocabulary, 0 to ", vocab_size - 1));
    }
    tokens->push_back(list[i].get<int32_t>());
  }
  return absl::OkStatus();
}

absl::Status AppendTokenizerIds(std::span<const int32_t> ids, int64_t vocab_size, std::vector<int32_t>* tokens) {
  for (int32_t id : ids) {
    if (id >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("the tokenizer gives id ", id, ", the model's vocabulary has ",
                                                     vocab_size, "; do the files belong together?"));
    }
  }
  tokens->insert(tokens->end(), ids.begin(), ids.end());
  return absl::OkStatus();
}

}  // namespace lockstep
