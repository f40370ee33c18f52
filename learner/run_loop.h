// The reinforcement learning run, rank 0: one training step is a straight list of calls (RunStep).
//
// Step s (1, 2, ...) trains on groups (s - 1) P .. s P - 1, P = trainer.prompts_per_step; group g asks the problem at
// position g of the data order. Both are pure functions of s, so a resumed run continues exactly. Groups are accepted
// by the ledger as they finish and sorted before they are used: no result depends on arrival.
//
// Held-out evaluation (run_loop_eval.cc): before step 1, after every trainer.eval_every steps and after the last, with
// the weights of that moment. It asks groups that no step trains on, so a run's figures are the same with and without.
// Dynamic sampling adds groups to a step whose first ones teach nothing: learner/dynamic_sampling.h.
//
// max_staleness k > 0: the groups of steps s + 1 .. s + k are handed out before step s trains. A group's tokens are
// then at most k weight versions older than the weights that train on them.
#ifndef LOCKSTEP_LEARNER_RUN_LOOP_H_
#define LOCKSTEP_LEARNER_RUN_LOOP_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/metrics.h"
#include "engine/model/routing.h"
#include "engine/tokenizer/tokenizer.h"
#include "learner/advantage.h"
#include "learner/dataset.h"
#include "learner/dynamic_sampling.h"
#include "learner/group_rewards.h"
#include "learner/ledger.h"
#include "learner/rollout_client.h"
#include "learner/run_folder.h"
#include "learner/run_monitor.h"
#include "learner/step_message.h"
#include "learner/tensorboard_log.h"
#include "learner/trainer.h"
#include "proto/run_config.pb.h"
#include "weight_sync/publisher.h"

namespace lockstep {

// Everything is the caller's and outlives the loop.
struct RunLoopParts {
  v1::RunConfig config;
  std::string run_id;
  uint64_t epoch = 0;  // from the ledger
  RunPosition position;
  std::vector<int32_t> stop_token_ids;
  RoutingShape routing;  // of the model
  const Tokenizer* tokenizer = nullptr;
  const std::vector<Problem>* problems = nullptr;
  const std::vector<Problem>* eval_problems = nullptr;  // null or empty: no evaluations
  Trainer* trainer = nullptr;
  RankLeader* ranks = nullptr;
  Ledger* ledger = nullptr;
  RolloutClient* rollouts = nullptr;
  WeightPublisher* publisher = nullptr;
  Checkpoints* checkpoints = nullptr;
  const MetricsFile* metrics_file = nullptr;
  TensorBoardLog* tensorboard = nullptr;
  RunMonitor* monitor = nullptr;
  MetricsRegistry* metrics = nullptr;
  std::function<bool()> terminated;  // SIGTERM: ends before the next step is trained
};

class RunLoop {
 public:
  // Refuses settings that cannot be.
  static absl::StatusOr<RunLoop> Create(RunLoopParts parts);
  // Until max_steps, the stop reward, a stop command, SIGTERM, or an error. Ends with a checkpoint, also on an error
  // (of the last finished step), and with the other ranks told.
  absl::Status Run();

 private:
  RunLoop(RunLoopParts parts, AdvantageKind advantage, std::unique_ptr<GroupRewards> rewards);

  absl::Status RunSteps();
  absl::Status RunStep();
  // Evaluates where trainer.eval_every asks for it at the step that is done; at_end: the run's last one. What the
  // ledger has already is not made again.
  absl::Status EvaluateIfDue(bool at_end);
  absl::Status RecordEvaluation(const v1::EvalSummary& summary, const std::string& settings);
  // append: a line in metrics.jsonl, and an event for TensorBoard.
  void ShowEvaluation(const v1::EvalSummary& summary, bool append);
  void ReportEvaluationProgress(size_t done);
  // OK with `collected` false: SIGTERM came first.
  absl::Status CollectGroups(uint64_t step, bool* collected);
  absl::Status WaitForGroups(uint64_t begin, uint64_t end, bool* collected);
  absl::Status RequestGroups(uint64_t last_step);
  // Hands a finished group to what scores it, and accepts those that are scored.
  absl::Status RewardGroup(SampleGroup group);
  absl::Status AcceptRewarded();
  void ReportRewardTrouble();
  absl::Status RequestGroup(uint64_t group_id);
  // Of a group that the ledger had: that its routing is of this model, or that there is none.
  absl::Status CheckKnownRouting(const SampleGroup& group) const;
  bool wants_routing() const {
    const std::string& replay = parts_.config.learner().router_replay();
    return !replay.empty() && replay != "off";
  }
  // Those of the step that are here, ascending by id.
  std::vector<const SampleGroup*> GroupsOf(uint64_t step) const;
  std::vector<TrainSample> BuildBatch(uint64_t step, v1::StepSummary* summary);
  absl::Status Train(std::vector<TrainSample> samples, v1::StepSummary* summary);
  absl::Status PublishWeights(v1::StepSummary* summary);
  absl::Status FinishStep(uint64_t step, v1::StepSummary* summary);
  // To metrics.jsonl and TensorBoard. What cannot be written is logged, and the run goes on.
  void AppendLine(const std::string& json);
  void ExportMetrics(const v1::StepSummary& summary, const TrainMetrics& metrics);
  void ServeCommands();
  absl::Status WaitWhilePaused();
  absl::StatusOr<std::string> WriteCheckpoint();
  void ReportProgress();
  bool RewardReached(double reward_mean);
  uint64_t FirstGroup(uint64_t step) const { return (step - 1) * parts_.config.trainer().prompts_per_step(); }
  uint64_t FirstExtra(uint64_t step) const { return kFirstExtraGroup + (step - 1) * extra_per_step_; }
  uint64_t StepOf(uint64_t group_id) const;
  uint64_t ProblemOf(uint64_t group_id);

  RunLoopParts parts_;
  AdvantageKind advantage_;
  std::unique_ptr<GroupRewards> rewards_;
  bool reward_trouble_ = false;
  DataOrder order_;
  DataOrder extra_order_;          // of the groups that dynamic sampling adds
  const uint64_t extra_per_step_;  // at most
  RunPosition position_;
  uint64_t requested_steps_;  // groups of steps up to this one have been asked for
  uint64_t checkpointed_step_ = UINT64_MAX;
  uint64_t evaluated_step_ = UINT64_MAX;   // by this process, or found in the ledger
  std::map<uint64_t, SampleGroup> ready_;  // by group_id: accepted, not trained on
  double score_seconds_ = 0;
  double steps_seconds_ = 0;  // of the steps of this process, for the estimate of the time left
  uint64_t steps_here_ = 0;
  bool reward_reached_ = false;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_RUN_LOOP_H_
