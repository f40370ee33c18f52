// What happens to whole pages of the KV cache on the device. As in kernels.h: device memory, work on `stream`.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_KV_PAGES_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_KV_PAGES_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/tensor/tensor_view.h"

namespace lockstep::cuda {

// The pages of some layers: layer l has its keys, [page][G][E][16], at keys + l layer_stride bytes, and its values,
// [page][G][16][E], at values + l layer_stride bytes. num_layers 1: layer_stride is not read.
struct KvLayers {
  DType dtype = DType::kF16;
  int64_t num_kv_heads = 0;  // G
  int64_t head_dim = 0;      // E
  int64_t num_pages = 0;
  int64_t num_layers = 0;
  int64_t layer_stride = 0;
  void* keys = nullptr;
  void* values = nullptr;
};

// Copies the first `tokens` positions of page `from` to page `to` in every layer (copy-on-write of a shared, partly
// filled page); the other positions of `to` stay as they are. tokens in [0, 16].
[[nodiscard]] cudaError_t CopyKvPage(const KvLayers& layers, int32_t from, int32_t to, int64_t tokens,
                                     cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_KV_PAGES_H_
