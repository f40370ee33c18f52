// The perfectible set (arXiv 2510.26788, section on the sanity test): problems that the model solves sometimes. Samples
// each problem `samples` times and keeps those whose pass rate is in [low, high].
#ifndef LOCKSTEP_LEARNER_FILTER_H_
#define LOCKSTEP_LEARNER_FILTER_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "learner/dataset.h"
#include "learner/rollout_client.h"
#include "learner/run_monitor.h"
#include "learner/verifier/verifier.h"
#include "proto/run_config.pb.h"

namespace lockstep {

struct FilterParts {
  v1::RunConfig config;
  std::string run_id;
  uint32_t samples = 16;
  double low = 0.2;
  double high = 0.8;
  std::string out;  // JSON lines: each kept line with `pass_rate` added, in the order of the data set
  std::vector<int32_t> stop_token_ids;
  const Tokenizer* tokenizer = nullptr;
  const std::vector<Problem>* problems = nullptr;
  RolloutClient* rollouts = nullptr;
  RunMonitor* monitor = nullptr;
  std::function<bool()> terminated;
};

// CANCELLED when it was stopped: the file is then not written.
absl::Status FilterProblems(const FilterParts& parts);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_FILTER_H_
