// `lockstep eval`: one evaluation of the model that the rollout servers have loaded, written to a file.
#ifndef LOCKSTEP_LEARNER_EVAL_MODE_H_
#define LOCKSTEP_LEARNER_EVAL_MODE_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "learner/dataset.h"
#include "learner/rollout_client.h"
#include "learner/run_monitor.h"
#include "proto/run_config.pb.h"

namespace lockstep {

struct EvalModeParts {
  v1::RunConfig config;
  std::string run_id;
  std::string out;  // EvaluationReport
  std::vector<int32_t> stop_token_ids;
  const Tokenizer* tokenizer = nullptr;
  const std::vector<Problem>* problems = nullptr;
  RolloutClient* rollouts = nullptr;
  RunMonitor* monitor = nullptr;
  std::function<bool()> terminated;
};

// CANCELLED when it was stopped: the file is then not written.
absl::Status EvaluateModel(const EvalModeParts& parts);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_EVAL_MODE_H_
