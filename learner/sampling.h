// A group of each problem through the rollout servers and the rewards: filter, evaluation.
#ifndef LOCKSTEP_LEARNER_SAMPLING_H_
#define LOCKSTEP_LEARNER_SAMPLING_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "learner/dataset.h"
#include "learner/group_rewards.h"
#include "learner/rollout_client.h"
#include "proto/run_config.pb.h"

namespace lockstep {

// Group ids are draws' keys and must never meet: training counts from 0, the filter from 2^40, and the evaluation of
// step s has 2^62 + s 2^24 + problem (below 2^63, which SQLite's integers need; a data set has fewer than 2^24 lines).
inline constexpr uint64_t kFirstFilterGroup = uint64_t{1} << 40;
inline constexpr uint64_t kFirstEvaluationGroup = uint64_t{1} << 62;
inline constexpr int kEvaluationProblemBits = 24;

// A group with rollout's sampling settings and the run's seed.
v1::Group MakeGroupRequest(const v1::RunConfig& config, const std::string& run_id, uint64_t group_id,
                           const std::vector<int32_t>& prompt, const std::vector<int32_t>& stop_token_ids);

struct GroupSampling {
  RolloutClient* rollouts = nullptr;
  GroupRewards* rewards = nullptr;
  const std::vector<Problem>* problems = nullptr;
  uint64_t first_group_id = 0;
  std::function<v1::Group(size_t index)> make;  // of (*problems)[index], with group_id first_group_id + index
  // With rewards and dropped_reasons.
  std::function<absl::Status(size_t index, SampleGroup group)> take;
  // Finished groups of someone else that the client still had in flight; empty: there can be none.
  std::function<absl::Status(SampleGroup group)> take_other;
  // Called at least twice a second with the number of groups taken; an error ends the sampling and is returned.
  std::function<absl::Status(size_t done)> between;
};

// Hands out all groups, a bounded number at once, and takes them in the order in which they finish.
absl::Status SampleGroups(const GroupSampling& sampling);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_SAMPLING_H_
