// Mixture of experts on the device: the router, the slots, and what moves rows between tokens and slots. Legend and
// operations are those of engine/kernels/ops.h, with the bits of the CPU's matched operations; a NaN weight is NaN, its
// other bits are not promised. T tokens, N experts, K experts of a token, P = T K slots. As in kernels.h: device
// memory, work on `stream`, nothing waits or allocates. The host never learns how many slots an expert has.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_MOE_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_MOE_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/tensor/tensor_view.h"

namespace lockstep::cuda {

// ---- router.cu: a warp has a token

// The top_k largest of logits [T, N] FP32, of equal ones the lower expert, NaN last: in ascending expert into experts
// [T, K]; their softmax (over all, or with `normalize` over the chosen) into weights [T, K]. A row with NaN gets K
// different experts, so that what follows stays in bounds, and NaN weights.
[[nodiscard]] cudaError_t RouteTopK(const Tensor& logits, int64_t top_k, bool normalize, int32_t* experts,
                                    float* weights, cudaStream_t stream);
// The weights of given experts [T, K], ascending within a row, different and in [0, N).
[[nodiscard]] cudaError_t RouteGiven(const Tensor& logits, const int32_t* experts, int64_t top_k, bool normalize,
                                     float* weights, cudaStream_t stream);
// d_logits FP32 [T, N] from products [T, K] = weight * d loss / d weight. experts as above. d_logits is not logits.
[[nodiscard]] cudaError_t RouteTopKBackward(const Tensor& logits, const int32_t* experts, int64_t top_k, bool normalize,
                                            const float* products, const Tensor& d_logits, cudaStream_t stream);

// ---- routing_rows.cu

// Where the experts of one layer lie in bytes of engine/model/routing.h: row t begins at t row_bytes, the layer's K ids
// layer_offset bytes into it, of id_bytes each (1, or 2: little-endian).
struct RoutingPlace {
  int64_t row_bytes = 0;
  int64_t layer_offset = 0;
  int64_t id_bytes = 1;
};
// experts [T, K] of a layer into the rows of `record`.
[[nodiscard]] cudaError_t RecordExperts(const int32_t* experts, int64_t tokens, int64_t top_k,
                                        const RoutingPlace& place, uint8_t* record, cudaStream_t stream);

// Tokens that had given experts, and those of them where the chosen were another set (RoutingTrace of
// engine/model/decoder.h); added to.
struct RoutingCounts {
  int64_t choices = 0;
  int64_t differing = 0;
};
// For the tokens with has_given [T] not 0: counts (null: not) how often `given` differs from experts [T, K], then, with
// `replay`, puts the given experts in their place. The caller has checked the bytes (CheckRouting), and takes the
// weights by RouteGiven.
[[nodiscard]] cudaError_t TakeGivenExperts(const uint8_t* given, const uint8_t* has_given, const RoutingPlace& place,
                                           int64_t tokens, int64_t top_k, bool replay, int32_t* experts,
                                           RoutingCounts* counts, cudaStream_t stream);

// ---- slots.cu

// The pairs of a token and one of its experts, sorted by expert, then by token: pair i = t K + j has slot slots[i];
// slot s has token slot_tokens[s] and weight slot_weights[s]; expert e has slots [offsets[e], offsets[e + 1]). experts,
// weights, slots [T, K], experts in [0, N); slot_tokens, slot_weights [P]; offsets [N + 1]. No atomics, no scratch:
// each expert's block reads all pairs twice, N P words in all.
[[nodiscard]] cudaError_t AssignSlots(const int32_t* experts, const float* weights, int64_t tokens, int64_t top_k,
                                      int64_t num_experts, int32_t* slots, int32_t* slot_tokens, float* slot_weights,
                                      int32_t* offsets, cudaStream_t stream);

// out[i] = store(scale[i] * x[rows[i]]); scale null: a copy of the bytes. rows [out.rows] in [0, x.rows): slot_tokens,
// or any list of rows (those whose final hidden state is wanted). scale FP32 [out.rows]. One dtype.
[[nodiscard]] cudaError_t GatherRows(const Tensor& x, const int32_t* rows, const float* scale, const Tensor& out,
                                     cudaStream_t stream);
// out[t] = store(residual[t] + store(sum_j weights[t, j] x[slots[t K + j]])): one fma chain over ascending j from 0.
// weights null: ones. residual null-data: nothing is added; it may alias out. One dtype.
[[nodiscard]] cudaError_t CombineRows(const Tensor& x, const int32_t* slots, int64_t top_k, const float* weights,
                                      const Tensor& residual, const Tensor& out, cudaStream_t stream);
// out[i] = sum_c a[rows[i], c] b[rows[i], c] in FP32, i below `count`: 8 lanes and the lane tree. rows null: row i.
// With slots as rows it gives the products [T, K] of RouteTopKBackward in the order of the tokens. a and b have one
// dtype.
[[nodiscard]] cudaError_t RowDots(const Tensor& a, const Tensor& b, const int32_t* rows, int64_t count, float* out,
                                  cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_MOE_H_
