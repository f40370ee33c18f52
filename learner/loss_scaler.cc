#include "learner/loss_scaler.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace lockstep {

absl::StatusOr<LossScaler> LossScaler::Create(const v1::LossScaleConfig& config, DType dtype) {
  LossScaler scaler;
  if (config.mode().empty() || config.mode() == "auto") {
    scaler.dynamic_ = dtype == DType::kF16;
  } else if (config.mode() == "dynamic" || config.mode() == "off") {
    scaler.dynamic_ = config.mode() == "dynamic";
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("learner.loss_scale.mode is '", config.mode(), "'; known are auto, dynamic, off"));
  }
  if (config.growth_factor() != 0) scaler.growth_factor_ = config.growth_factor();
  if (config.backoff_factor() != 0) scaler.backoff_factor_ = config.backoff_factor();
  if (config.growth_interval() != 0) scaler.growth_interval_ = config.growth_interval();
  if (config.max_consecutive_skips() != 0) scaler.max_consecutive_skips_ = config.max_consecutive_skips();
  const float init = config.init() != 0 ? config.init() : 65536.0f;
  if (!(init >= kFloor) || !std::isfinite(init)) {
    return absl::InvalidArgumentError(absl::StrCat("learner.loss_scale.init is ", init, "; must be at least 1"));
  }
  if (!(scaler.growth_factor_ > 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("learner.loss_scale.growth_factor is ", scaler.growth_factor_, "; must be above 1"));
  }
  if (!(scaler.backoff_factor_ > 0 && scaler.backoff_factor_ < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("learner.loss_scale.backoff_factor is ", scaler.backoff_factor_, "; must be in (0, 1)"));
  }
  scaler.state_.scale = scaler.dynamic_ ? init : 1.0f;
  return scaler;
}

absl::Status LossScaler::Update(bool gradients_finite) {
  if (gradients_finite) {
    state_.consecutive_skips_at_floor = 0;
    if (dynamic_ && ++state_.growth_tracker == growth_interval_) {
      const float grown = state_.scale * growth_factor_;
      if (std::isfinite(grown)) state_.scale = grown;
      state_.growth_tracker = 0;
    }
    return absl::OkStatus();
  }
  ++state_.skipped_steps_total;
  state_.growth_tracker = 0;
  if (state_.scale <= kFloor) {
    ++state_.consecutive_skips_at_floor;
  } else {
    state_.scale = std::max(kFloor, state_.scale * backoff_factor_);
  }
  if (state_.consecutive_skips_at_floor >= max_consecutive_skips_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "gradients were not finite in ", state_.consecutive_skips_at_floor, " steps in a row at loss scale ",
        state_.scale,
        " (learner.loss_scale.max_consecutive_skips); lower learner.lr, or use learner.dtype bf16 or fp32"));
  }
  return absl::OkStatus();
}

}  // namespace lockstep
