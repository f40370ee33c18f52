// A finished sample of the policy and the group that it belongs to: plain values, the same in memory and in the ledger.
#ifndef LOCKSTEP_LEARNER_TRAJECTORY_H_
#define LOCKSTEP_LEARNER_TRAJECTORY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "proto/rollout.pb.h"

namespace lockstep {

// One response. The three arrays have one entry a token, in order.
struct Sample {
  uint32_t sample_index = 0;
  uint32_t attempt = 0;
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;           // log mu of each token under the distribution that it was drawn from
  std::vector<uint64_t> weight_versions;  // that computed each token; never falls
  uint64_t weight_epoch = 0;
  v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
  bool stale_kv_cache = false;
  // Experts that the rollout's tokens went to, rows of engine/model/routing.h; empty where they were not asked for. Of
  // the prompt's positions but the last (shared by the samples of one prefill), and a row a token, of the position that
  // it was drawn from: together those of prompt and response but their very last position.
  std::shared_ptr<const std::string> prompt_routing;
  std::string routing;
  double reward = 0;
  std::string dropped_reason;  // empty: counts; else why it does not ("nonfinite", "invalid", "reward", "no_signal")
};

// The n samples of one prompt, ascending by sample_index.
struct SampleGroup {
  uint64_t group_id = 0;
  uint64_t problem_index = 0;
  uint64_t step = 0;  // that trains on it
  std::vector<Sample> samples;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_TRAJECTORY_H_
