// Gradients of a low-rank update of the weights (LowRankBackward of engine/kernels/ops.h) on the device, with the bits
// of the CPU's matched operation. As in kernels.h: device memory, work on `stream`, nothing waits or allocates.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_LOW_RANK_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_LOW_RANK_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/tensor/tensor_view.h"

namespace lockstep::cuda {

// d_a += scale (d_out B)^T x, d_b += scale d_out^T (x A^T), by way of [T, r] products. d_out [T, n], x [T, k], one
// dtype; a, d_a [r, k] and b, d_b [n, r] FP32, dense. Products over k and n: 8 lanes and the lane tree; sums over T:
// one fma chain in ascending t a call, then times scale, added. scratch: LowRankScratch floats.
int64_t LowRankScratch(int64_t tokens, int64_t rank);
[[nodiscard]] cudaError_t LowRankBackward(const Tensor& d_out, const Tensor& x, const Tensor& a, const Tensor& b,
                                          float scale, const Tensor& d_a, const Tensor& d_b, float* scratch,
                                          cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_LOW_RANK_H_
