// Whether a group can be taken at all: a pure function of the request and the server's limits. Work is bounded by the
// limits, not by the request: sizes are compared before anything is walked.
#ifndef LOCKSTEP_ROLLOUT_SERVER_GROUP_CHECK_H_
#define LOCKSTEP_ROLLOUT_SERVER_GROUP_CHECK_H_

#include <cstdint>

#include "absl/status/status.h"
#include "proto/rollout.pb.h"

namespace lockstep {

inline constexpr uint32_t kMaxSamplesPerGroup = 1024;
inline constexpr int kMaxStopTokenIds = 64;
inline constexpr size_t kMaxRunIdBytes = 256;
// Below this 1/temperature amplifies logits towards overflow; 0 is greedy.
inline constexpr float kMinTemperature = 1e-3f;
inline constexpr float kMaxTemperature = 1e3f;

struct GroupLimits {
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  int64_t kv_cache_tokens = 0;  // of the whole pool
  bool has_experts = false;
};

// INVALID_ARGUMENT: never valid. RESOURCE_EXHAUSTED: prompt + max_tokens is more than the whole KV cache.
absl::Status CheckGroup(const v1::Group& group, const GroupLimits& limits);

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_GROUP_CHECK_H_
