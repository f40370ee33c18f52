// How a run went, in the figures of a report's table.
#ifndef LOCKSTEP_CLIENT_RUN_OUTCOME_H_
#define LOCKSTEP_CLIENT_RUN_OUTCOME_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "client/run_data.h"

namespace lockstep {

inline constexpr int kCollapseWindow = 5;  // steps

struct RunOutcome {
  uint64_t steps = 0;
  std::optional<double> first_reward, last_reward, best_reward;
  std::optional<uint64_t> target_step;  // the first whose reward is at least the target
  // The first step at which the mean reward of the last kCollapseWindow steps is under half of the greatest such mean
  // before it (which must be above 0), or at which the reward, or the loss or gradient of a step that was not skipped,
  // is not finite.
  std::optional<uint64_t> collapsed_step;
  std::optional<double> max_abs_log_ratio;      // of all steps
  uint64_t skipped_updates = 0;                 // for gradients that were not finite
  double seconds = 0;                           // of all steps
  std::map<std::string, double> phase_seconds;  // "rollout", ...: of all steps
};

RunOutcome SummarizeRun(const RunData& run, double target_reward);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_RUN_OUTCOME_H_
