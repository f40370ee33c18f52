// What moves rows and changes their dtype, for the device's decoder. As in kernels.h: device memory, work on `stream`,
// nothing waits or allocates.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_ROWS_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_ROWS_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/tensor/tensor_view.h"

namespace lockstep::cuda {

// out[rows[i]] = x[i], a copy: the transpose of gathering rows. rows [x.rows] in [0, out.rows), different; the other
// rows of out are left as they are. One dtype.
[[nodiscard]] cudaError_t ScatterRows(const Tensor& x, const int32_t* rows, const Tensor& out, cudaStream_t stream);

// out[i] = store(load(x[i])), i below n: exact where out's dtype is x's. Either may begin anywhere; multiples of 8
// elements from 16-byte boundaries take the fewest accesses.
[[nodiscard]] cudaError_t Convert(const void* x, DType from, int64_t n, DType to, void* out, cudaStream_t stream);
// The same from FP32.
[[nodiscard]] cudaError_t Convert(const float* x, int64_t n, DType dtype, void* out, cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_ROWS_H_
