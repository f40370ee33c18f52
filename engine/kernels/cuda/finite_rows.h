// Rows of logits that nothing can be drawn from. As in kernels.h: device memory, work on `stream`, nothing waits or
// allocates.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_FINITE_ROWS_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_FINITE_ROWS_H_

#include <cuda_runtime.h>

#include "engine/kernels/cuda/kernels.h"

namespace lockstep::cuda {

// log_probs[i] becomes NaN where a logit of row i is not finite, or, for a row that is not greedy, lse[i] is not.
// logits FP32 [T, V]; rows, lse, log_probs [T]. Comes behind Sample, whose tokens of such rows are ids without a
// meaning.
[[nodiscard]] cudaError_t MarkNonfinite(const Tensor& logits, const SamplingRow* rows, const float* lse,
                                        float* log_probs, cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_FINITE_ROWS_H_
