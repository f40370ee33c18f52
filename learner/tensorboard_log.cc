#include "learner/tensorboard_log.h"

#include "absl/time/clock.h"
#include "proto/figures.h"

namespace lockstep {

absl::Status TensorBoardLog::Append(const std::string& json) {
  const auto line = ParseFigures(json);
  if (!line.ok()) return line.status();
  return events_.Add(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()), line->step,
                     line->evaluation ? EvaluationScalars(line->figures) : StepScalars(line->figures, supervised_));
}

}  // namespace lockstep
