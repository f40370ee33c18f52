// Matrix products on the device: ops.h's Linear and its two backward products, for one weight or for the experts of a
// layer. Weights are row-major [n, k] in the storage dtype; every matrix may have a row stride. Legend as in ops.h.
//
// All tensors are device memory, all work is put on `stream` and not waited for; nothing allocates. Shapes and dtypes
// are checked on the host; offsets are the caller's promise: ascending from 0, offsets[N] <= rows. Any sizes are taken;
// where a matrix does not lie at multiples of 16 bytes (its start and its stride), it is read element by element.
//
// Two implementations: MakeMatchedGemm here and MakeNativeGemm (gemm_cublaslt.h).
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "engine/tensor/tensor_view.h"

namespace lockstep::cuda {

// Rows [offsets[e], offsets[e + 1]) of a call's activations belong to expert e. The counts are known to the device
// alone; rows from offsets[N] on are neither read nor written.
struct ExpertRows {
  const int32_t* offsets = nullptr;  // [N + 1], device memory
  int64_t num_experts = 0;           // N
};

class DeviceGemm {
 public:
  virtual ~DeviceGemm() = default;

  // out = store(x w^T + bias); with residual: out = store(residual + store(x w^T + bias)). x [T, k], w [n, k], bias
  // [1, n] or null-data, all of one dtype; residual [T, n] of out's dtype or null-data, may alias out; out [T, n] of
  // x's dtype or FP32 (then there is no rounding).
  [[nodiscard]] virtual cudaError_t Linear(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& residual,
                                           const Tensor& out, cudaStream_t stream) = 0;
  // Columns [begin, begin + out.cols) of Linear without bias and residual, for logits in chunks: matched, the same
  // bits. (w.Rows(begin, count) would be another weight, whose sums may have other slices.)
  [[nodiscard]] virtual cudaError_t LinearColumns(const Tensor& x, const Tensor& w, int64_t begin, const Tensor& out,
                                                  cudaStream_t stream) = 0;
  // d_x = store(d_out w), or with accumulate store(d_x + d_out w). d_out [T, n], w [n, k], d_x [T, k], one dtype, d_x
  // also FP32.
  [[nodiscard]] virtual cudaError_t LinearBackwardInput(const Tensor& d_out, const Tensor& w, const Tensor& d_x,
                                                        bool accumulate, cudaStream_t stream) = 0;
  // d_w += d_out^T x; d_bias += column sums of d_out, one chain over ascending t (null-data: none). d_out [T, n], x [T,
  // k] of one dtype; d_w [n, k], d_bias [1, n] FP32.
  [[nodiscard]] virtual cudaError_t LinearBackwardWeight(const Tensor& d_out, const Tensor& x, const Tensor& d_w,
                                                         const Tensor& d_bias, cudaStream_t stream) = 0;

  // The same for experts: w is stacked [N n, k], expert e at rows [e n, (e + 1) n). x [P, k], out [P, n].
  [[nodiscard]] virtual cudaError_t GroupedLinear(const Tensor& x, const Tensor& w, const ExpertRows& experts,
                                                  const Tensor& out, cudaStream_t stream) = 0;
  // d_out [P, n], d_x [P, k].
  [[nodiscard]] virtual cudaError_t GroupedLinearBackwardInput(const Tensor& d_out, const Tensor& w,
                                                               const ExpertRows& experts, const Tensor& d_x,
                                                               bool accumulate, cudaStream_t stream) = 0;
  // d_w [N n, k] FP32, added to; an expert without rows is left as it is.
  [[nodiscard]] virtual cudaError_t GroupedLinearBackwardWeight(const Tensor& d_out, const Tensor& x,
                                                                const ExpertRows& experts, const Tensor& d_w,
                                                                cudaStream_t stream) = 0;
};

// The shapes of the tensor-core kernels' tiles. For one product all give the same bits: kAutomatic picks by size alone.
enum class GemmTile : uint8_t {
  kAutomatic = 0,
  kSkinny = 1,  // few rows: 16 or more outputs a block, a warp streams its share of the weight (Linear only; else 64)
  k64 = 2,      // 64 x 64 a block
  k128 = 3,     // 128 x 128 a block
};

// The project's own kernels. The matched contract, device against device: an output element depends on its own row of x
// (or d_out) and on the weight alone, and its bits on neither the number of rows, the row's position, nor the tile.
//
// FP16, BF16: mma.sync m16n8k16 with the weight as the 16-row operand, one chain of 16-element steps over ascending k
// in FP32 (mma.cuh says what a step is). Where n is small, k is cut into slices (GemmSliceLength), a chain each, added
// in ascending order to 0. Backward products are one chain over n, or over the rows of the call (of the expert).
// FP32: one fma chain over ascending k from 0 for each element: the bits of the CPU's matched operations.
// Then + bias, store, + residual, store, as ops.h says; backward sums are added to d_x or d_w once. Needs no scratch.
std::unique_ptr<DeviceGemm> MakeMatchedGemm(GemmTile tile = GemmTile::kAutomatic);

// Elements of k that one chain of Linear sums, a multiple of 64; of FP16 and BF16 weights [n, k] alone. More than k:
// there is one chain. Up to 8 slices where n < 4,096, so that few rows of x keep a whole device busy.
int64_t GemmSliceLength(int64_t n, int64_t k);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_H_
