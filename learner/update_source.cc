#include "learner/update_source.h"

namespace lockstep {

PublishSource UpdateSource::source() {
  const auto on_host = [this]() -> absl::StatusOr<ParamSource> {
    status_ = trainer_->Fetch(TrainArrays::kMasters);
    if (!status_.ok()) return status_;
    return trainer_->params();
  };
  return PublishSource(trainer_->device_params() == nullptr ? nullptr : this, on_host);
}

absl::Status UpdateSource::WriteImage(const BucketPlan& plan, void* image) const {
  status_ = trainer_->device_params()->WriteImage(plan, image);
  return status_;
}

}  // namespace lockstep
