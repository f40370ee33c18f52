// What a weight update takes of a trainer: on the device where the values lie there, and on the host, brought over once
// somebody asks. A device that fails meanwhile ends the run, while servers that cannot be reached do not; status()
// tells the two apart.
#ifndef LOCKSTEP_LEARNER_UPDATE_SOURCE_H_
#define LOCKSTEP_LEARNER_UPDATE_SOURCE_H_

#include "absl/status/status.h"
#include "learner/trainer.h"
#include "weight_sync/device_params.h"

namespace lockstep {

class UpdateSource final : private DeviceParams {
 public:
  explicit UpdateSource(Trainer* trainer) : trainer_(trainer) {}
  UpdateSource(const UpdateSource&) = delete;

  // For one Publish; refers to this object.
  PublishSource source();
  // Of reading the values.
  const absl::Status& status() const { return status_; }

 private:
  absl::Status WriteImage(const BucketPlan& plan, void* image) const override;

  Trainer* const trainer_;
  mutable absl::Status status_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_UPDATE_SOURCE_H_
