// Rewards of finished groups, from the built-in verifiers (at once) or from a reward service (later): one interface for
// the run loop and the filter.
#ifndef LOCKSTEP_LEARNER_GROUP_REWARDS_H_
#define LOCKSTEP_LEARNER_GROUP_REWARDS_H_

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/metrics.h"
#include "engine/tokenizer/tokenizer.h"
#include "learner/dataset.h"
#include "learner/reward_client.h"
#include "learner/trajectory.h"
#include "learner/verifier/verifier.h"
#include "proto/run_config.pb.h"

namespace lockstep {

// Sets each sample's reward, or its dropped_reason, by a built-in verifier. A response that the length limit cut gets
// 0.
void ScoreGroup(RewardKind kind, const Problem& problem, const Tokenizer& tokenizer, SampleGroup* group);

// How long to wait for the next group from a rollout server while rewards are pending.
inline constexpr absl::Duration kRewardPoll = absl::Milliseconds(10);

class GroupRewards {
 public:
  // An unknown data.reward, or a service that does not answer. The tokenizer outlives it; metrics may be null.
  static absl::StatusOr<std::unique_ptr<GroupRewards>> Create(const v1::DataConfig& data, const std::string& run_id,
                                                              const Tokenizer* tokenizer, MetricsRegistry* metrics);

  // group_ids are unique among those that are not yet taken.
  void Add(SampleGroup group, const Problem& problem);
  // A group all of whose samples have their reward or their dropped_reason; nothing when none came within `wait`.
  std::optional<SampleGroup> Next(absl::Duration wait);
  RewardKind kind() const { return kind_; }
  // Groups that were added and not yet taken.
  size_t pending() const { return scored_.size() + waiting_.size(); }
  // One line while a service is away; else empty.
  std::string trouble() const { return client_ == nullptr ? "" : client_->trouble(); }

 private:
  GroupRewards(RewardKind kind, const std::string& run_id, const Tokenizer* tokenizer)
      : kind_(kind), run_id_(run_id), tokenizer_(tokenizer) {}

  RewardKind kind_;
  std::string run_id_;
  const Tokenizer* tokenizer_;
  std::deque<SampleGroup> scored_;
  std::map<uint64_t, SampleGroup> waiting_;  // by group_id, at the service
  std::unique_ptr<RewardClient> client_;     // service only
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_GROUP_REWARDS_H_
