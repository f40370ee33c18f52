// The shape that every launcher has: host code checks sizes and dtypes (LOCKSTEP_CHECK: a wrong call is our bug), picks
// the grid, and starts the kernel through the runtime's own C++ call rather than <<<>>>, so that any C++ compiler takes
// the source (emulation/cuda_runtime.h). A launcher never allocates, never waits, and returns what the runtime says: a
// device that fails is an operating error, and the caller makes a Status of it.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_LAUNCH_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_LAUNCH_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "engine/base/check.h"
#include "engine/tensor/tensor_view.h"

namespace lockstep::cuda {

// The bounds of a grid: 2^31 - 1 blocks along x, 65,535 along y.
inline constexpr int64_t kGridXMax = 0x7FFFFFFF;
inline constexpr int64_t kGridYMax = 65535;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Starts `kernel` on blocks_x x blocks_y blocks of `threads`; nothing is started, and nothing is wrong, where there are
// no blocks.
// shared: bytes of dynamic shared memory; more than 48 KiB are asked for, as CUDA wants it (at most 99 KiB on every
// device from sm_80 on, 163 KiB on sm_80 itself).
template <typename... Params, typename... Args>
[[nodiscard]] cudaError_t LaunchShared(void (*kernel)(Params...), int64_t blocks_x, int64_t blocks_y, int64_t threads,
                                       int64_t shared, cudaStream_t stream, Args... args) {
  if (blocks_x == 0 || blocks_y == 0) return cudaSuccess;
  LOCKSTEP_CHECK(blocks_x > 0 && blocks_x <= kGridXMax && blocks_y > 0 && blocks_y <= kGridYMax,
                 "the grid exceeds what a launch takes");
  if (shared > 48 << 10) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y), 1);
  config.blockDim = dim3(static_cast<unsigned>(threads), 1, 1);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

template <typename... Params, typename... Args>
[[nodiscard]] cudaError_t Launch(void (*kernel)(Params...), int64_t blocks_x, int64_t blocks_y, int64_t threads,
                                 cudaStream_t stream, Args... args) {
  return LaunchShared(kernel, blocks_x, blocks_y, threads, 0, stream, args...);
}

// Calls `body` with a value of the C++ type of `dtype`.
template <typename Body>
[[nodiscard]] cudaError_t WithStorageType(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kF32:
      return body(float{});
    case DType::kF16:
      return body(__half{});
    case DType::kBF16:
      return body(__nv_bfloat16{});
  }
  LOCKSTEP_CHECK(false, "unknown dtype");
  return cudaErrorInvalidValue;
}

// A matrix as a kernel sees it: row-major, `stride` elements from row to row.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
};

template <typename T>
Rows<T> RowsOf(const Tensor& tensor) {
  return {static_cast<T*>(tensor.data), tensor.stride};
}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_LAUNCH_H_
