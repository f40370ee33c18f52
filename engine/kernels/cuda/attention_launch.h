// Between the files of attention only: their checks, the choice of a template, and the FP32 kernels (attention_f32.cu).
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_LAUNCH_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_LAUNCH_H_

#include <cstdint>
#include <type_traits>

#include "engine/kernels/cuda/attention.h"
#include "engine/kernels/cuda/attention_state.cuh"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {

// Calls body(T, std::integral_constant<int, E>, Exponential) for a 16-bit dtype.
template <typename Body>
[[nodiscard]] cudaError_t WithAttentionTypes(DType dtype, int64_t head_dim, Numerics numerics, Body&& body) {
  const auto with_head = [&]<typename T, typename Exponential>(T type, Exponential exponential) {
    switch (head_dim) {
      case 16:
        return body(type, std::integral_constant<int, 16>{}, exponential);
      case 32:
        return body(type, std::integral_constant<int, 32>{}, exponential);
      case 64:
        return body(type, std::integral_constant<int, 64>{}, exponential);
      case 96:
        return body(type, std::integral_constant<int, 96>{}, exponential);
      default:
        return body(type, std::integral_constant<int, 128>{}, exponential);
    }
  };
  const auto with_type = [&]<typename T>(T type) {
    return numerics == Numerics::kMatched ? with_head(type, MatchedExponential{})
                                          : with_head(type, NativeExponential{});
  };
  return dtype == DType::kF16 ? with_type(__half{}) : with_type(__nv_bfloat16{});
}

// A [rows, heads E] tensor of the call's dtype, its rows where 16-byte copies can take them.
inline void CheckHeads(const Tensor& tensor, DType dtype, int64_t rows, int64_t heads, int64_t head_dim) {
  LOCKSTEP_CHECK(tensor.dtype == dtype, "attention's tensors have one dtype");
  LOCKSTEP_CHECK(tensor.rows == rows && tensor.cols == heads * head_dim,
                 "attention's rows are whole heads, one a token");
  LOCKSTEP_CHECK(reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 &&
                     tensor.stride * static_cast<int64_t>(DTypeSize(dtype)) % 16 == 0,
                 "attention's rows begin at multiples of 16 bytes");
}

inline void CheckLse(const Tensor& lse, int64_t rows, int64_t heads) {
  LOCKSTEP_CHECK(lse.data == nullptr || (lse.dtype == DType::kF32 && lse.rows == rows && lse.cols == heads),
                 "lse is FP32 [T, H]");
}

// The kernels count rows, positions and (token, head) pairs of a sequence in 32 bits.
inline void CheckLength(int64_t length) {
  LOCKSTEP_CHECK(length >= 0 && length < (int64_t{1} << 30), "attention counts to 2^30");
}

inline void CheckShape(const AttentionShape& shape) {
  LOCKSTEP_CHECK(AttentionSupports(shape), "AttentionSupports refuses these heads: ask it before");
}

// The first view.decode_rows rows of AttentionPaged in a 16-bit dtype, after its checks.
[[nodiscard]] cudaError_t AttentionDecode(const AttentionShape& shape, const Tensor& q, const PagedView& view,
                                          int64_t max_position, Numerics numerics, void* scratch, const Tensor& out,
                                          cudaStream_t stream);

// The launchers of attention.h for FP32, after their checks.
[[nodiscard]] cudaError_t AttentionPagedF32(const AttentionShape& shape, const Tensor& q, const PagedView& view,
                                            const Tensor& out, cudaStream_t stream);
[[nodiscard]] cudaError_t AttentionPackedF32(const AttentionShape& shape, const Tensor& q, const Tensor& k,
                                             const Tensor& v, const int32_t* cu_seqlens, int64_t num_sequences,
                                             int64_t max_length, const Tensor& out, const Tensor& lse,
                                             cudaStream_t stream);
// delta [T, H]: the row sums of d_out * out.
[[nodiscard]] cudaError_t AttentionPackedBackwardF32(const AttentionShape& shape, const Tensor& d_out, const Tensor& q,
                                                     const Tensor& k, const Tensor& v, const Tensor& lse,
                                                     const float* delta, const int32_t* cu_seqlens,
                                                     int64_t num_sequences, int64_t max_length, const Tensor& d_q,
                                                     const Tensor& d_k, const Tensor& d_v, cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_LAUNCH_H_
