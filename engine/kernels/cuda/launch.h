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
#include <cstdlib>
#include <cstring>

#include "engine/base/check.h"
#include "engine/tensor/tensor_view.h"

namespace lockstep::cuda {

// The bounds of a grid: 2^31 - 1 blocks along x, 65,535 along y.
inline constexpr int64_t kGridXMax = 0x7FFFFFFF;
inline constexpr int64_t kGridYMax = 65535;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Bytes of dynamic shared memory. A block has 48 KiB unless its kernel asks for more, and 99 KiB on every device from
// sm_80 on (sm_86 and sm_89 have no more) where it does; both bounds count the kernel's own __shared__ variables too,
// for which so much is left: 16 KiB without asking, 1 KiB with.
inline constexpr int64_t kSharedUnasked = int64_t{32} << 10;
inline constexpr int64_t kSharedMax = int64_t{98} << 10;

// Whether LaunchBehind lets launches overlap: on sm_90, whose code waits (ptx/launch_order.h; what runs on later
// devices is sm_80's), unless LOCKSTEP_CUDA_OVERLAP is 0.
inline bool LaunchesOverlap() {
  static const bool overlap = [] {
    const char* asked = std::getenv("LOCKSTEP_CUDA_OVERLAP");
    if (asked != nullptr && std::strcmp(asked, "0") == 0) return false;
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major == 9;
  }();
  return overlap;
}

// Starts a kernel: for the functions below.
template <typename... Params, typename... Args>
[[nodiscard]] cudaError_t StartKernel(void (*kernel)(Params...), int64_t blocks_x, int64_t blocks_y, int64_t threads,
                                      int64_t shared, bool early, cudaStream_t stream, Args... args) {
  if (blocks_x == 0 || blocks_y == 0) return cudaSuccess;
  LOCKSTEP_CHECK(blocks_x > 0 && blocks_x <= kGridXMax && blocks_y > 0 && blocks_y <= kGridYMax,
                 "the grid exceeds what a launch takes");
  LOCKSTEP_CHECK(shared >= 0 && shared <= kSharedMax, "a block's shared memory exceeds what every device has");
  if (shared > kSharedUnasked) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedMax));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y), 1);
  config.blockDim = dim3(static_cast<unsigned>(threads), 1, 1);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

// Starts `kernel` on blocks_x x blocks_y blocks of `threads`; nothing is started, and nothing is wrong, where there are
// no blocks. shared: bytes of dynamic shared memory. What a kernel may have is a property of the kernel and not of a
// launch, so it is always the most: two host threads may launch one kernel with different sizes.
template <typename... Params, typename... Args>
[[nodiscard]] cudaError_t LaunchShared(void (*kernel)(Params...), int64_t blocks_x, int64_t blocks_y, int64_t threads,
                                       int64_t shared, cudaStream_t stream, Args... args) {
  return StartKernel(kernel, blocks_x, blocks_y, threads, shared, /*early=*/false, stream, args...);
}

template <typename... Params, typename... Args>
[[nodiscard]] cudaError_t Launch(void (*kernel)(Params...), int64_t blocks_x, int64_t blocks_y, int64_t threads,
                                 cudaStream_t stream, Args... args) {
  return LaunchShared(kernel, blocks_x, blocks_y, threads, 0, stream, args...);
}

// As LaunchShared, for a kernel all of whose threads call AwaitPrevious (launch_order.h): it may begin while the kernel
// before it ends, which takes the time of a launch from between the two. For the many short kernels of a decode step.
template <typename... Params, typename... Args>
[[nodiscard]] cudaError_t LaunchBehind(void (*kernel)(Params...), int64_t blocks_x, int64_t blocks_y, int64_t threads,
                                       int64_t shared, cudaStream_t stream, Args... args) {
  return StartKernel(kernel, blocks_x, blocks_y, threads, shared, LaunchesOverlap(), stream, args...);
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
