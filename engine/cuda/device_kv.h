// The KV cache of all layers on the device. Pages as in KvPages of engine/kernels/ops.h.
#ifndef LOCKSTEP_ENGINE_CUDA_DEVICE_KV_H_
#define LOCKSTEP_ENGINE_CUDA_DEVICE_KV_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/device.h"
#include "engine/kernels/cuda/kv_pages.h"
#include "engine/model/model.h"

namespace lockstep::cuda {

class DeviceKv {
 public:
  static absl::StatusOr<DeviceKv> Allocate(const ModelConfig& config, DType dtype, int64_t num_pages,
                                           const Stream& stream);
  // Of one page in all layers.
  static size_t BytesPerPage(const ModelConfig& config, DType dtype);

  void* keys(int64_t layer) const { return static_cast<char*>(layers_.keys) + layer * layers_.layer_stride; }
  void* values(int64_t layer) const { return static_cast<char*>(layers_.values) + layer * layers_.layer_stride; }
  int64_t num_pages() const { return layers_.num_pages; }
  // Copies the first `tokens` positions of a page in every layer (copy-on-write of a shared, partly filled page).
  absl::Status CopyPage(int32_t from, int32_t to, int64_t tokens, const Stream& stream) const;

 private:
  DeviceKv() = default;
  DeviceBuffer memory_;
  KvLayers layers_;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_DEVICE_KV_H_
