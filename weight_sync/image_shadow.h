// A shadow on a device that is the wire image itself: every bucket is received where it stays and is digested by the
// device's kernel. For measurements and tests of what the transports do; who computes with the weights has a shadow of
// its own layout.
#ifndef LOCKSTEP_WEIGHT_SYNC_IMAGE_SHADOW_H_
#define LOCKSTEP_WEIGHT_SYNC_IMAGE_SHADOW_H_

#include <memory>

#include "absl/status/statusor.h"
#include "weight_sync/comm_device.h"
#include "weight_sync/shadow.h"

namespace lockstep {

struct ImageWeights : WeightSet {
  ImageWeights(ModelConfig config, BucketPlan plan, std::shared_ptr<CommDevice> device, StagingPool::Buffer memory);
  ~ImageWeights() override;

  const BucketPlan plan;
  const std::shared_ptr<CommDevice> device;
  const StagingPool::Buffer memory;  // of the device: plan.total_bytes
};

absl::StatusOr<std::unique_ptr<Shadow>> MakeImageShadow(std::shared_ptr<CommDevice> device, const ModelConfig& config,
                                                        const BucketPlan& plan, WeightId id);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_IMAGE_SHADOW_H_
