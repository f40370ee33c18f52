// Token ids from foreign lines: checked against the model's vocabulary before anything looks a row up by them.
#ifndef LOCKSTEP_LEARNER_TOKEN_IDS_H_
#define LOCKSTEP_LEARNER_TOKEN_IDS_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace lockstep {

// Appends the ids of a JSON array that stands under `key`. INVALID_ARGUMENT names the first that is none of the
// vocabulary's.
absl::Status AppendTokenIds(const nlohmann::json& list, const char* key, int64_t vocab_size,
                            std::vector<int32_t>* tokens);
// Appends what a tokenizer gave; INVALID_ARGUMENT when it does not belong to the model.
absl::Status AppendTokenizerIds(std::span<const int32_t> ids, int64_t vocab_size, std::vector<int32_t>* tokens);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_TOKEN_IDS_H_
