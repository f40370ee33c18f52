// The run folder's files that the learner writes: metrics.jsonl and the checkpoints.
#ifndef LOCKSTEP_LEARNER_RUN_FOLDER_H_
#define LOCKSTEP_LEARNER_RUN_FOLDER_H_

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/metrics.h"
#include "learner/trainer.h"
#include "proto/learner.pb.h"

namespace lockstep {

// One JSON object in one line, field names as in the proto, all fields present; numbers that are not finite are null.
std::string StepSummaryJson(const v1::StepSummary& summary);

// RUN/metrics.jsonl: one line a step (StepSummaryJson), and one an evaluation ({"step": s, "eval": {...}}).
class MetricsFile {
 public:
  // Keeps the lines of steps up to last_step: what came after is done again by a resumed run.
  static absl::StatusOr<MetricsFile> Open(const std::string& path, uint64_t last_step);
  // A disk that is full costs the line and not the run: the error is for the log.
  absl::Status Append(const std::string& json) const;
  // Whether Open found the evaluation of `step`.
  bool HasEvaluation(uint64_t step) const { return evaluations_.count(step) > 0; }

 private:
  std::string path_;
  std::set<uint64_t> evaluations_;
};

struct RunPosition {
  uint64_t step = 0;  // done
  uint64_t weight_version = 0;
  uint32_t rewarded_steps = 0;  // in a row at trainer.stop_reward
};

// RUN/checkpoints.
class Checkpoints {
 public:
  Checkpoints(const std::string& dir, const ModelConfig& model, DType dtype, const std::string& tokenizer_dir, int keep,
              MetricsRegistry* metrics);
  // Measures itself. A failure leaves what was there; it is counted and logged here, and the run goes on.
  absl::StatusOr<std::string> Write(Trainer& trainer, const RunPosition& position);
  // NOT_FOUND: there is none.
  absl::StatusOr<RunPosition> LoadLatest(Trainer& trainer) const;
  // Seconds of writing since the last call.
  double TakeSeconds();

 private:
  const std::string dir_;
  const ModelConfig model_;
  const DType dtype_;
  const std::string tokenizer_dir_;
  const int keep_;
  MetricsRegistry* const metrics_;
  double seconds_ = 0;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_RUN_FOLDER_H_
