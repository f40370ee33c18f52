#include "rollout_server/group_check.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/kernels/ops.h"

namespace lockstep {
namespace {

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

absl::Status CheckSampling(const v1::SamplingParams& sampling, int64_t vocab_size) {
  const float temperature = sampling.temperature();
  if (temperature != 0 && !(temperature >= kMinTemperature && temperature <= kMaxTemperature)) {
    return Invalid("sampling.temperature ", temperature, " is neither 0 (greedy) nor in [", kMinTemperature, ", ",
                   kMaxTemperature, "]");
  }
  if (!(sampling.top_p() > 0 && sampling.top_p() <= 1)) {
    return Invalid("sampling.top_p ", sampling.top_p(), " is not in (0, 1]; 1 turns it off");
  }
  if (sampling.max_tokens() == 0) return Invalid("sampling.max_tokens is 0; at least 1 is needed");
  if (sampling.stop_token_ids_size() > kMaxStopTokenIds) {
    return Invalid("sampling.stop_token_ids has ", sampling.stop_token_ids_size(), " ids; at most ", kMaxStopTokenIds);
  }
  for (int32_t id : sampling.stop_token_ids()) {
    if (id < 0 || id >= vocab_size) {
      return Invalid("sampling.stop_token_ids has ", id, ", not in the vocabulary of ", vocab_size);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSamples(const v1::Group& group) {
  if (group.num_samples() == 0 || group.num_samples() > kMaxSamplesPerGroup) {
    return Invalid("num_samples ", group.num_samples(), " is not in 1..", kMaxSamplesPerGroup);
  }
  if (group.sample_indices_size() > static_cast<int>(group.num_samples())) {
    return Invalid("sample_indices has ", group.sample_indices_size(), " entries for ", group.num_samples(),
                   " samples");
  }
  std::vector<bool> seen(group.num_samples(), false);
  for (uint32_t index : group.sample_indices()) {
    if (index >= group.num_samples()) {
      return Invalid("sample_indices has ", index, ", not below num_samples ", group.num_samples());
    }
    if (seen[index]) return Invalid("sample_indices has ", index, " twice");
    seen[index] = true;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckGroup(const v1::Group& group, const GroupLimits& limits) {
  if (group.run_id().size() > kMaxRunIdBytes) {
    return Invalid("run_id has ", group.run_id().size(), " bytes; at most ", kMaxRunIdBytes);
  }
  if (absl::Status status = CheckSamples(group); !status.ok()) return status;
  if (absl::Status status = CheckSampling(group.sampling(), limits.vocab_size); !status.ok()) return status;
  if (group.routing() && !limits.has_experts) {
    return Invalid("routing was asked for, and this server's model has no experts; ask without it");
  }
  const int64_t prompt = group.prompt_token_ids_size();
  if (prompt == 0) return Invalid("the prompt is empty; at least 1 token is needed");
  const int64_t longest = prompt + static_cast<int64_t>(group.sampling().max_tokens());
  if (longest > limits.max_position_embeddings) {
    return Invalid("prompt of ", prompt, " + max_tokens ", group.sampling().max_tokens(), " = ", longest,
                   " tokens, above the model's ", limits.max_position_embeddings,
                   " positions; shorten the prompt or max_tokens");
  }
  if (longest > limits.kv_cache_tokens) {
    return absl::ResourceExhaustedError(
        absl::StrCat("prompt of ", prompt, " + max_tokens ", group.sampling().max_tokens(), " = ", longest,
                     " tokens, above the KV cache's ", limits.kv_cache_tokens, "; raise rollout.kv_cache_mib"));
  }
  for (int64_t i = 0; i < prompt; ++i) {
    const int32_t id = group.prompt_token_ids(static_cast<int>(i));
    if (id < 0 || id >= limits.vocab_size) {
      return Invalid("prompt_token_ids[", i, "] is ", id, ", not in the vocabulary of ", limits.vocab_size);
    }
  }
  return absl::OkStatus();
}

}  // namespace lockstep
