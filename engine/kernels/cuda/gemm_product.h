// What the three products of a linear layer have in common, for the kernels of gemm.h: out[j][i] = sum over r of
// a(i, r) b(j, r), with a on the 16-row side of the tensor core.
//
//   Linear                out [T, n]  i: n  j: T  r: k   a = w    b = x
//   LinearBackwardInput   d_x [T, k]  i: k  j: T  r: n   a = w^T  b = d_out
//   LinearBackwardWeight  d_w [n, k]  i: k  j: n  r: T   a = x^T  b = d_out^T
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_PRODUCT_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_PRODUCT_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/kernels/cuda/gemm.h"

namespace lockstep::cuda {

// Steps of the reduction that a tile takes at a time; slices are multiples of it.
inline constexpr int kDepth = 64;

struct ProductOperand {
  const void* data = nullptr;
  int64_t stride = 0;
  bool by_reduction = false;  // element (i, r) at [r][i]; else at [i][r]
  bool aligned = false;       // start and stride are multiples of 16 bytes
};

// Which range the offsets of experts cut.
enum class ExpertCut : uint8_t { kNone = 0, kRows = 1, kReduction = 2 };

struct Product {
  DType dtype = DType::kF32;
  ProductOperand a, b;
  int64_t size_i = 0, size_j = 0, reduction = 0;
  int64_t slice = 0;  // Linear's GemmSliceLength; 0: one chain

  ExpertCut cut = ExpertCut::kNone;
  ExpertRows experts;
  int64_t a_expert = 0, out_expert = 0;  // elements from an expert's a (kRows), out (kReduction) to the next one's

  void* out = nullptr;
  int64_t out_stride = 0;
  bool out_fp32 = false;
  bool accumulate = false;         // out = store(out + sum)
  const void* bias = nullptr;      // [size_i] of dtype
  const void* residual = nullptr;  // rows of out's dtype
  int64_t residual_stride = 0;

  // Set by the launchers: tiles along i; along j (kRows: at most so many), of all experts.
  uint32_t tiles_i = 0, slots = 0;
};

// FP16 and BF16 on tensor cores; FP32.
[[nodiscard]] cudaError_t LaunchTensorCoreProduct(const Product& product, GemmTile tile, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchFloatProduct(const Product& product, cudaStream_t stream);
// d_bias [columns] += column sums of d_out, one chain of additions over ascending rows.
[[nodiscard]] cudaError_t LaunchColumnSums(const Tensor& d_out, const Tensor& d_bias, cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_PRODUCT_H_
