// Every operation of the engine, once: signature, shapes, rounding points, reduction order. Backends implement it:
// reference (nested loops that read like the formula) and cpu (AVX2, multi-threaded). Nothing here allocates; scratch
// belongs to the Ops instance, so an instance serves one thread of calls at a time.
//
// Legend: T tokens of the call, D hidden size, H query heads, G key/value heads, E head_dim, F MLP width, V vocabulary,
// S keys, N experts, K experts of a token, M width of an expert. "store" = round to nearest even into the tensor's
// dtype. All accumulation is FP32.
//
// Matched contract (Numerics::kMatched): each output element depends on its own row's inputs alone, and is reduced in
// one order that depends on nothing but the operation's inner sizes: GEMM is one chain of fma over ascending k from 0
// (then + bias, then store, then + residual, store); attention walks key blocks of kAttentionBlock positions counted
// from position 0 with an online softmax; norms and log-sum-exp use 8 virtual lanes (index mod 8) and one fixed tree;
// exp and log are the shared polynomials. Batch size, row position, chunking, threads do not enter.
// Numerics::kNative lets the implementation choose faster or other orders (see each backend).
#ifndef LOCKSTEP_ENGINE_KERNELS_OPS_H_
#define LOCKSTEP_ENGINE_KERNELS_OPS_H_

#include <cstdint>
#include <memory>
#include <span>

#include "engine/kernels/contract.h"
#include "engine/kernels/packed_matrix.h"
#include "engine/tensor/tensor.h"

namespace lockstep {

// One layer's KV cache: page p holds keys as [G][E][kPageTokens] and values as [G][kPageTokens][E].
struct KvPages {
  DType dtype = DType::kF16;
  void* keys = nullptr;
  void* values = nullptr;
  int64_t num_pages = 0;
};

// The rows of one sequence in a paged forward call: rows [row_begin, row_begin + row_count) of q/k/v are the tokens at
// positions [position_begin, position_begin + row_count); pages[i] is the page of positions [16 i, 16 i + 16).
struct PagedSequence {
  int64_t row_begin = 0;
  int64_t row_count = 0;
  int64_t position_begin = 0;
  std::span<const int32_t> pages;
};

class Ops {
 public:
  virtual ~Ops() = default;

  // out[t] = table[ids[t]]: a copy (table and out have one dtype). ids [T] in [0, V); table W[V, D]; out [T, D].
  virtual void Embedding(std::span<const int32_t> ids, const PackedMatrix& table, const Tensor& out) = 0;
  // d_table[ids[t]] += d_out[t], ascending t. d_table [V, D] FP32 row-major.
  virtual void EmbeddingBackward(std::span<const int32_t> ids, const Tensor& d_out, const Tensor& d_table) = 0;

  // out = store(x * rstd * weight), rstd = 1/sqrt(mean(x^2) + eps). weight [1, D] same dtype; x, out [T, n D]: each row
  // is n groups of D (one, or the heads of q/k norms), each normed on its own; rstd FP32 [T, n] dense or null. out may
  // alias x.
  virtual void RmsNorm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out, float* rstd) = 0;
  // d_x = store(gradient [+ d_residual]); d_weight FP32 [1, D] is added to, in a fixed order (null-data: not
  // computed). d_residual [T, n D] may
  // be null-data; d_x may alias d_out or d_residual.
  virtual void RmsNormBackward(const Tensor& d_out, const Tensor& x, const Tensor& weight, const float* rstd,
                               const Tensor& d_residual, const Tensor& d_x, const Tensor& d_weight) = 0;

  // out = store(x W^T + bias); with residual: out = store(residual + store(x W^T + bias)). x [T, k], W [n, k], bias
  // [1, n] same dtype or null-data, residual [T, n] or null-data (may alias out), out [T, n] (FP32 out allowed for any
  // storage dtype: then there is no rounding).
  virtual void Linear(const Tensor& x, const PackedMatrix& w, const Tensor& bias, const Tensor& residual,
                      const Tensor& out) = 0;
  // d_x = store(d_out W) (or, with accumulate, store(d_x + d_out W)). d_out [T, n]; d_x [T, k].
  virtual void LinearBackwardInput(const Tensor& d_out, const PackedMatrix& w, const Tensor& d_x, bool accumulate) = 0;
  // d_w += d_out^T x; d_bias += column sums of d_out (null-data: none). d_w [n, k], d_bias [1, n], FP32 row-major.
  virtual void LinearBackwardWeight(const Tensor& d_out, const Tensor& x, const Tensor& d_w, const Tensor& d_bias) = 0;

  // Gradients of a low-rank update of the weights, W + scale B A: d_a += scale (d_out B)^T x, d_b += scale d_out^T (x
  // A^T), by way of [T, r] products: the [n, k] gradient of W is never formed. d_out [T, n], x [T, k]; a, d_a [r, k]
  // and b, d_b [n, r] FP32, dense. Products over k and n: 8 lanes and the lane tree; sums over T: one fma chain in
  // ascending t a call, then times scale, added.
  virtual void LowRankBackward(const Tensor& d_out, const Tensor& x, const Tensor& a, const Tensor& b, float scale,
                               const Tensor& d_a, const Tensor& d_b) = 0;

  // Rotary embedding (Su et al. 2021, the half-split form of Llama), in place on `x` [T, num_heads * E]: angles from
  // cos_sin [max_positions, E] FP32, each row E/2 cosines then E/2 sines. positions [T]. backward: the transposed
  // rotation.
  virtual void Rope(const Tensor& x, int64_t num_heads, int64_t head_dim, std::span<const int32_t> positions,
                    const Tensor& cos_sin, bool backward) = 0;

  // Writes k and v rows [T, G*E] into the sequences' pages.
  virtual void WriteKv(const AttentionShape& shape, const Tensor& k, const Tensor& v,
                       std::span<const PagedSequence> sequences, const KvPages& cache) = 0;
  // Causal attention of each row over positions 0 .. its own, keys and values from the pages (its own included, so
  // WriteKv comes first). q, out [T, H*E].
  virtual void AttentionPaged(const AttentionShape& shape, const Tensor& q, std::span<const PagedSequence> sequences,
                              const KvPages& cache, const Tensor& out) = 0;

  // Causal attention within each packed sequence; sequence i is rows [cu_seqlens[i], cu_seqlens[i+1]) and starts at
  // position 0. q, out [T, H*E]; k, v [T, G*E]; lse FP32 [T, H] (natural log of the softmax denominator, incl. max).
  virtual void AttentionPacked(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                               std::span<const int32_t> cu_seqlens, const Tensor& out, const Tensor& lse) = 0;
  virtual void AttentionPackedBackward(const AttentionShape& shape, const Tensor& d_out, const Tensor& q,
                                       const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                                       std::span<const int32_t> cu_seqlens, const Tensor& d_q, const Tensor& d_k,
                                       const Tensor& d_v) = 0;

  // out = store(silu(gate) * up); gate_up [T, 2F] = gate columns then up columns; out [T, F].
  virtual void SwiGlu(const Tensor& gate_up, const Tensor& out) = 0;
  virtual void SwiGluBackward(const Tensor& d_out, const Tensor& gate_up, const Tensor& d_gate_up) = 0;

  // Mixture of experts: the T K pairs of a token and one of its experts, sorted by expert, are the slots; an expert is
  // Linear, SwiGlu and Linear on its range of slots.
  //
  // Router: with p = softmax(logits[t]), the top_k largest logits (of equal ones that of the lower expert), in
  // ascending expert, into experts [T, K]; weights [T, K] = their p, with `normalize` divided by their sum. logits FP32
  // [T, N]; exp(z - max), and the sum over all N in 8 lanes and the lane tree, over the K chosen in ascending expert. A
  // row with NaN gets K different experts and NaN weights.
  virtual void RouteTopK(const Tensor& logits, int64_t top_k, bool normalize, int32_t* experts, float* weights) = 0;
  // The weights of experts that are given: `experts` [T, K], in ascending order within a row, different and below N.
  // The same bits as RouteTopK's where they are the ones that it chooses; RouteTopKBackward is the gradient of both.
  virtual void RouteGiven(const Tensor& logits, std::span<const int32_t> experts, bool normalize, float* weights) = 0;
  // d_logits FP32 [T, N] from products [T, K] = weight * d loss / d weight: d_z_i = products_i (0 where i is not
  // chosen)
  // - q_i sum products, with q the softmax over the chosen experts (normalize) or over all.
  virtual void RouteTopKBackward(const Tensor& logits, std::span<const int32_t> experts, bool normalize,
                                 const float* products, const Tensor& d_logits) = 0;
  // out[i] = store(scale[i] * x[rows[i]]); scale null: a copy. x and out have one dtype.
  virtual void GatherRows(const Tensor& x, std::span<const int32_t> rows, const float* scale, const Tensor& out) = 0;
  // out[t] = store(residual[t] + store(sum_j weights[t, j] x[slots[t K + j]])): one fma chain over ascending j from 0.
  // weights null: ones. residual null-data: nothing is added; it may alias out.
  virtual void CombineRows(const Tensor& x, std::span<const int32_t> slots, const float* weights,
                           const Tensor& residual, const Tensor& out) = 0;
  // out[i] = sum_c a[i, c] b[i, c] in FP32: 8 lanes and the lane tree. a, b [rows, cols].
  virtual void RowDots(const Tensor& a, const Tensor& b, float* out) = 0;

  // log_prob[t] = z[target] - lse(z), z = (x W^T)[t] * (1/temperature) in FP32; entropy of softmax(z) in nats; lse
  // FP32. x [T, D] (final norm applied); W [V, D]; computed in row and vocabulary chunks, never T x V at once. Output
  // pointers [T]; entropy and lse may be null.
  virtual void LogProb(const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets, float temperature,
                       float* log_prob, float* entropy, float* lse) = 0;
  // Gradient of sum_t coefficient[t] * log_prob[t]: d_x [T, D] store; d_w [V, D] FP32 is added to (null-data: not
  // computed). lse from LogProb.
  virtual void LogProbBackward(const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets,
                               float temperature, const float* coefficient, const float* lse, const Tensor& d_x,
                               const Tensor& d_w) = 0;
  // lse of one row of logits [V] that the caller computed by Linear with FP32 out, scaled by 1/temperature: the same
  // bits that LogProb gives. Used by the sampler: log mu[v] = logits[v] * (1/temperature) - lse.
  virtual float LogSumExp(const float* logits, int64_t vocab_size, float temperature) = 0;
};

// threads >= 1 compute threads (the caller is one of them).
std::unique_ptr<Ops> MakeReferenceOps();
std::unique_ptr<Ops> MakeCpuOps(Numerics numerics, int threads);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_KERNELS_OPS_H_
