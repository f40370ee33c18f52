// Tests only: the part of CUDA that the kernels use, on the CPU, so that the same .cu files are compiled by the host's
// compiler and run where there is no GPU. This folder comes first on the include path of an emulated build and takes
// the place of the toolkit's headers of the same names; the sources have no #ifdef.
//
// How: one operating-system thread; blocks run one after the other; every thread of a block is a fiber with its own
// stack, switched at barriers and shuffles (fibers.h). The order of fibers and blocks can be set, so that a missing
// barrier shows as another result in one of the orders.
//
// What it shows: indexing, bounds (with AddressSanitizer), the order of every sum, rounding, barriers reached by all,
// masks of shuffles that name the right threads, IEEE arithmetic to the bit, limits of a launch (grid, threads, dynamic
// shared memory with and without asking), and, where the code is compiled for it, races between threads and blocks
// (races.h). What it cannot show: that nvcc's code does the same (contraction and IEEE division are a matter of flags);
// anything about time: coalescing, bank conflicts, occupancy, registers; shared memory that is read before it is
// written (it keeps what the last block left; dynamic shared memory starts each block as NaNs); the sums inside of a
// tensor core (tensor_core.h takes another order).
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_CUDA_RUNTIME_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_CUDA_RUNTIME_H_

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

#include "engine/kernels/cuda/emulation/fibers.h"
#include "engine/kernels/cuda/emulation/races.h"
#include "engine/kernels/cuda/emulation/runtime.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x, unsigned y, unsigned z) : x(x), y(y), z(z) {}
};

// The dynamic shared memory that a block can have on the devices with the least from sm_80 on (99 KiB a block on sm_86
// and sm_89), and without asking for more by cudaFuncSetAttribute (48 KiB). Both are less a kernel's static memory,
// which the emulation does not know: taken for 1 KiB, as cuda.h says of
// CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES.
inline constexpr size_t kEmulatedSharedStatic = size_t{1} << 10;
inline constexpr size_t kEmulatedSharedMax = (size_t{99} << 10) - kEmulatedSharedStatic;
inline constexpr size_t kEmulatedSharedDefault = (size_t{48} << 10) - kEmulatedSharedStatic;
alignas(128) inline unsigned char emulated_dynamic_shared[kEmulatedSharedMax];

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
inline thread_local std::map<const void*, size_t> emulated_shared_limits;  // a launcher asks on the thread that starts
template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute, int value) {
  if (value < 0 || static_cast<size_t>(value) > kEmulatedSharedMax) return cudaErrorInvalidValue;
  emulated_shared_limits[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(value);
  return cudaSuccess;
}

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

// The work of a launch runs the grid to its end.
template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args... args) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  if (block.x == 0 || block.x > 1024 || block.y != 1 || block.z != 1 || grid.z != 1) return cudaErrorInvalidValue;
  if (grid.x == 0 || grid.x > 0x7FFFFFFFu || grid.y == 0 || grid.y > 65535) return cudaErrorInvalidValue;
  const auto limit = emulated_shared_limits.find(reinterpret_cast<const void*>(kernel));
  const size_t shared = config->dynamicSmemBytes;
  if (shared > (limit == emulated_shared_limits.end() ? kEmulatedSharedDefault : limit->second)) {
    return cudaErrorInvalidValue;
  }
  if (const cudaError_t error = lockstep::emulation::CheckStream(config->stream); error != cudaSuccess) return error;
  (lockstep::emulation::NoteUse(config->stream, &args, sizeof(args)), ...);
  bool early = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    early = early || config->attrs[i].val.programmaticStreamSerializationAllowed != 0;  // the one attribute there is
  }
  return lockstep::emulation::Submit(config->stream, [=] {
    blockDim = block;
    gridDim = grid;
    unsigned fresh_block = grid.x * grid.y;
    const auto body = [&](unsigned block_index, unsigned thread) __attribute__((no_sanitize("thread"))) {
      blockIdx = dim3(block_index % grid.x, block_index / grid.x, 0);
      threadIdx = dim3(thread, 0, 0);
      if (block_index != fresh_block) std::memset(emulated_dynamic_shared, 0xFF, shared);
      fresh_block = block_index;
      lockstep::emulation::races::EnterKernel();
      kernel(args...);
      lockstep::emulation::races::LeaveKernel();
    };
    const auto resume = [](unsigned thread) { threadIdx = dim3(thread, 0, 0); };
    lockstep::emulation::RunGrid(grid.x * grid.y, block.x, early, body, resume);
    return cudaSuccess;
  });
}

inline void __syncthreads() { lockstep::emulation::SyncBlock(); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const unsigned lane = threadIdx.x % 32, base = lane / static_cast<unsigned>(width) * static_cast<unsigned>(width);
  bits = lockstep::emulation::Exchange(mask, bits, base + static_cast<unsigned>(source) % static_cast<unsigned>(width));
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return __shfl_sync(mask, value, static_cast<int>((threadIdx.x % 32) ^ static_cast<unsigned>(lane_mask)));
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) { return lockstep::emulation::Ballot(mask, predicate); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { lockstep::emulation::SyncWarp(mask); }
inline int __popc(unsigned bits) { return std::popcount(bits); }

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_CUDA_RUNTIME_H_
