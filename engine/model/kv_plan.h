// How many pages a rollout server's KV cache has: the server allocates what the memory plan predicts.
#ifndef LOCKSTEP_ENGINE_MODEL_KV_PLAN_H_
#define LOCKSTEP_ENGINE_MODEL_KV_PLAN_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/model.h"

namespace lockstep {

// Pages for rollout.kv_cache_mib, or, when that is 0, for max_batch_size sequences of max_sequence_tokens, at most a
// quarter of the memory that this process may use. RESOURCE_EXHAUSTED when not even one such sequence fits.
absl::StatusOr<int64_t> PlanKvPages(const ModelConfig& config, DType dtype, uint64_t kv_cache_mib,
                                    int64_t max_batch_size, int64_t max_sequence_tokens);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_KV_PLAN_H_
