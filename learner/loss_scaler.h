// Dynamic loss scale as torch.cuda.amp.GradScaler: a pure state machine, (state, found non-finite) to (state, verdict).
//   non-finite: the step is skipped, scale *= backoff, growth_tracker = 0
//   finite:     growth_tracker += 1; at growth_interval: scale *= growth (where still finite), growth_tracker = 0
// Ours adds a floor of 1: a scale below it cannot help, and max_consecutive_skips skips in a row at the floor end the
// run with a reason.
#ifndef LOCKSTEP_LEARNER_LOSS_SCALER_H_
#define LOCKSTEP_LEARNER_LOSS_SCALER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tensor/dtype.h"
#include "proto/run_config.pb.h"

namespace lockstep {

// In the checkpoint.
struct LossScalerState {
  float scale = 1.0f;
  uint32_t growth_tracker = 0;
  uint32_t consecutive_skips_at_floor = 0;
  uint64_t skipped_steps_total = 0;
};

class LossScaler {
 public:
  static constexpr float kFloor = 1.0f;

  // mode "auto": dynamic for fp16, off otherwise. Zero fields take the defaults 2^16, 2, 0.5, 2000, 20.
  static absl::StatusOr<LossScaler> Create(const v1::LossScaleConfig& config, DType dtype);

  float scale() const { return state_.scale; }
  bool dynamic() const { return dynamic_; }
  const LossScalerState& state() const { return state_; }
  void Restore(const LossScalerState& state) { state_ = state; }

  // After the backward pass of every rank. An error ends the run: too many skips in a row at the floor (or, with mode
  // off, in a row at all).
  absl::Status Update(bool gradients_finite);

 private:
  LossScaler() = default;
  bool dynamic_ = false;
  float growth_factor_ = 2.0f;
  float backoff_factor_ = 0.5f;
  uint32_t growth_interval_ = 2000;
  uint32_t max_consecutive_skips_ = 20;
  LossScalerState state_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_LOSS_SCALER_H_
