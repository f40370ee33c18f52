// RUN/tensorboard: the run's figures as TensorBoard's event files, live. A scalar a step for every figure of the step
// summary and of each held-out evaluation, under the tags of proto/figures.h. Written by rank 0 alone. A disk that is
// full costs the figures of that time and not the run: errors are for the log.
#ifndef LOCKSTEP_LEARNER_TENSORBOARD_LOG_H_
#define LOCKSTEP_LEARNER_TENSORBOARD_LOG_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "proto/event_file.h"

namespace lockstep {

class TensorBoardLog {
 public:
  // last_step: the steps after it, which a resumed run does again, are dropped by readers.
  TensorBoardLog(const std::string& run_dir, uint64_t last_step, bool supervised)
      : events_(run_dir + "/tensorboard", last_step + 1), supervised_(supervised) {}
  // A line of metrics.jsonl: a step or an evaluation.
  absl::Status Append(const std::string& json);

 private:
  EventLog events_;
  const bool supervised_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_TENSORBOARD_LOG_H_
