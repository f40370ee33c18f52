// A training step's numbers as its summary has them, and as Prometheus sees them.
#ifndef LOCKSTEP_LEARNER_STEP_FIGURES_H_
#define LOCKSTEP_LEARNER_STEP_FIGURES_H_

#include "engine/base/metrics.h"
#include "learner/trainer.h"
#include "proto/learner.pb.h"

namespace lockstep {

// Loss, gradient, mismatch, clip and mask figures and the seconds of the trainer's phases.
void FillStepFigures(const TrainMetrics& metrics, v1::StepSummary* summary);

// Gauges and counters of the same.
void ExportStepFigures(const v1::StepSummary& summary, const TrainMetrics& metrics, MetricsRegistry& registry);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_STEP_FIGURES_H_
