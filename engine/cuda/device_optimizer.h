// The FP32 end of a training step on the device: global norm, AdamW, and the storage-dtype copy into the weights. The
// state is four flat arenas of one layout (ArenaLayout, or LowRankLayout for adapters).
#ifndef LOCKSTEP_ENGINE_CUDA_DEVICE_OPTIMIZER_H_
#define LOCKSTEP_ENGINE_CUDA_DEVICE_OPTIMIZER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/arena.h"
#include "engine/cuda/device.h"
#include "engine/kernels/cuda/kernels.h"

namespace lockstep::cuda {

// Elements [begin, end) that decay, or do not.
struct DecayRange {
  int64_t begin = 0;
  int64_t end = 0;
  bool decay = false;
};
// The parameters of an arena in as few ranges as their decay allows, gaps included.
std::vector<DecayRange> DecayRanges(const ArenaLayout& layout);

class DeviceOptimizer {
 public:
  // Zeroed arenas of `size` elements, which `ranges` cover in ascending order. Bytes of device memory: Bytes().
  static absl::StatusOr<DeviceOptimizer> Create(int64_t size, std::vector<DecayRange> ranges, const Stream& stream);
  static size_t Bytes(int64_t size);

  float* master() const { return master_.As<float>(); }
  float* gradient() const { return gradient_.As<float>(); }
  float* moment1() const { return moment1_.As<float>(); }
  float* moment2() const { return moment2_.As<float>(); }
  int64_t size() const { return size_; }

  // Norm and finite flag of gradient() / scale, and the clip to `limit` (0: none), into control() on the device. Ranks
  // whose gradients are equal agree on it.
  absl::Status Norm(double scale, double limit, const Stream& stream);
  // AdamW with control()'s multiplier, once Norm is on the stream; where the gradient is not finite nothing changes.
  // params.weight_decay holds for the ranges that decay; params.grad_multiplier is not read. copy: where the updated
  // parameters are rounded to, an arena of the same layout in copy_dtype, or null.
  absl::Status Step(const AdamWParams& params, DType copy_dtype, void* copy, const Stream& stream);
  // What Norm found; waits for the stream.
  absl::StatusOr<StepControl> ReadControl(const Stream& stream);

 private:
  DeviceOptimizer() = default;
  int64_t size_ = 0;
  std::vector<DecayRange> ranges_;
  DeviceBuffer master_, gradient_, moment1_, moment2_;
  DeviceBuffer partial_;  // GradNormScratch doubles, then StepControl
  PinnedBuffer host_control_;
  double* partial() const { return partial_.As<double>(); }
  StepControl* control() const;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_DEVICE_OPTIMIZER_H_
