// The set that a weight update fills in a GPU's memory: no byte of it touches the host (weight_sync/shadow.h over
// engine/cuda/set_writer.h).
#ifndef LOCKSTEP_ROLLOUT_SERVER_CUDA_SHADOW_H_
#define LOCKSTEP_ROLLOUT_SERVER_CUDA_SHADOW_H_

#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/cuda/device_weights.h"
#include "engine/cuda/set_writer.h"
#include "engine/model/weight_set.h"
#include "weight_sync/shadow.h"

namespace lockstep {

// A set in device memory. The memory is free for the next one when its last holder lets go.
struct CudaWeightSet final : WeightSet {
  CudaWeightSet(WeightId id, std::shared_ptr<const cuda::DeviceWeights> memory)
      : WeightSet(memory->config(), memory->dtype()), memory(std::move(memory)) {
    epoch = id.epoch;
    version = id.version;
  }
  std::shared_ptr<const cuda::DeviceWeights> memory;
};

// memory: of the plan's model and dtype. It and the writer are used by nothing else until the shadow ends, or the
// released set. Errors of SetWriter::Begin. Releases a CudaWeightSet.
absl::StatusOr<std::unique_ptr<Shadow>> MakeCudaShadow(int device, const BucketPlan& plan, WeightId id,
                                                       std::shared_ptr<const cuda::DeviceWeights> memory,
                                                       std::shared_ptr<cuda::SetWriter> writer);

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_CUDA_SHADOW_H_
