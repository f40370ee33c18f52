// Kernels of the benchmark alone: random data where it is wanted, and a pass that only reads.
#ifndef LOCKSTEP_TESTS_GPU_BENCH_BENCH_KERNELS_H_
#define LOCKSTEP_TESTS_GPU_BENCH_BENCH_KERNELS_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/tensor/tensor_view.h"

namespace lockstep::cuda {

// out[r][c] = center + spread * u, u uniform in (-1, 1) of (seed, r, c) alone. Zeros would make a GPU faster than it
// is: it draws less power.
[[nodiscard]] cudaError_t FillUniform(const Tensor& out, uint64_t seed, float center, float spread,
                                      cudaStream_t stream);

// Reads `bytes` (a multiple of 32) at a 16-byte aligned address once, by as many blocks as there are in `blocks`; what
// each thread found goes to found [blocks * kReadThreads], so that nothing is optimised away.
inline constexpr int64_t kReadThreads = 512;
[[nodiscard]] cudaError_t ReadAll(const void* data, int64_t bytes, int64_t blocks, float* found, cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_TESTS_GPU_BENCH_BENCH_KERNELS_H_
