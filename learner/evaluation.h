// Held-out evaluation: n samples a problem through the rollout servers, with the sampling settings of section `eval`.
//
// pass@1  mean over problems of the fraction of right samples
// pass@k  mean over problems of the unbiased estimator (pass_at_k.h)
// maj@k   mean over problems of the majority vote of k samples over their extracted answers (pass_at_k.h)
// A sample is right when its reward is at least kRightReward. A sample that max_tokens cut, or that is not usable, is
// wrong and has no answer.
//
// The draws depend on (seed, step, problem, sample, position) alone: the same weights give the same figures, on any
// servers, and the draws of training are untouched.
#ifndef LOCKSTEP_LEARNER_EVALUATION_H_
#define LOCKSTEP_LEARNER_EVALUATION_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "learner/dataset.h"
#include "learner/group_rewards.h"
#include "learner/rollout_client.h"
#include "proto/learner.pb.h"
#include "proto/run_config.pb.h"

namespace lockstep {

inline constexpr double kRightReward = 0.5;

struct EvaluationParts {
  v1::RunConfig config;
  std::string run_id;
  std::vector<int32_t> stop_token_ids;
  const Tokenizer* tokenizer = nullptr;
  const std::vector<Problem>* problems = nullptr;
  RolloutClient* rollouts = nullptr;
  uint64_t step = 0;                // steps done
  WeightStamp weights;              // that the servers must have at least
  GroupRewards* rewards = nullptr;  // used by nobody else meanwhile
  // As in GroupSampling.
  std::function<absl::Status(SampleGroup group)> take_other;
  std::function<absl::Status(size_t done)> between;
};

// Of one problem, in the order of the data set.
struct ProblemResult {
  uint32_t right = 0;  // of n samples
  double majority = 0;
  double response_length_mean = 0;
};

struct Evaluation {
  v1::EvalSummary summary;
  std::vector<ProblemResult> problems;
};

// An error of `between` is returned as it is: the evaluation was given up.
absl::StatusOr<Evaluation> Evaluate(const EvaluationParts& parts);

// {"step": s, "eval": {"weight_version": ..., "pass@1": ..., "maj@8": ..., ...}}: a line of metrics.jsonl.
std::string EvalSummaryJson(const v1::EvalSummary& summary);
// "pass@1 0.412  pass@32 0.800  maj@32 0.500  length 120.3  cut 3.1%"
std::string EvalSummaryText(const v1::EvalSummary& summary);
// eval.json of `lockstep eval`: settings, the summary's figures, one entry a problem.
std::string EvaluationReport(const v1::RunConfig& config, const Evaluation& evaluation);

// Digest of everything in the config that an evaluation's figures depend on: equal settings, seed, data and training
// give equal figures at equal steps.
std::string EvaluationSettingsDigest(const v1::RunConfig& config);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_EVALUATION_H_
