// What the sending end of an update is given: the values of all parameters, on the host, on a device or both.
#ifndef LOCKSTEP_WEIGHT_SYNC_DEVICE_PARAMS_H_
#define LOCKSTEP_WEIGHT_SYNC_DEVICE_PARAMS_H_

#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "weight_sync/bucket_plan.h"

namespace lockstep {

// The FP32 masters of a learner whose arrays lie on a device.
class DeviceParams {
 public:
  virtual ~DeviceParams() = default;
  // Rounds all parameters to plan.dtype into the wire image, with the bits of RoundBucket, and waits until it is there.
  // `image`: memory of this process's device, plan.total_bytes; the buckets one after the other.
  virtual absl::Status WriteImage(const BucketPlan& plan, void* image) const = 0;
};

// One version. `host` gives the values where they are needed on the host, and is asked at most once a Publish, on its
// thread: with `device` set and a transport that takes device memory, never. Converts from what has them on the host.
struct PublishSource {
  PublishSource(ParamSource params) : host([params]() -> absl::StatusOr<ParamSource> { return params; }) {}
  PublishSource(const float* arena) : PublishSource(ParamSource(arena)) {}
  PublishSource(const Weights* weights) : PublishSource(ParamSource(weights)) {}
  PublishSource(const DeviceParams* device, std::function<absl::StatusOr<ParamSource>()> host)
      : device(device), host(std::move(host)) {}

  const DeviceParams* device = nullptr;  // null: the host only
  std::function<absl::StatusOr<ParamSource>()> host;
};

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_DEVICE_PARAMS_H_
