// The launchers of the CUDA backend: every operation that exists on the device so far, with shapes, dtypes, rounding
// points and reduction order. The legend and the matched contract are those of engine/kernels/ops.h, and each launcher
// gives the bits of the CPU's matched operation, except where it says otherwise.
//
// All pointers and tensors are device memory, all work is put on `stream` and not waited for. Nothing allocates;
// scratch is the caller's. Sizes and dtypes are checked on the host; what only the device knows (ids, positions, slots)
// is the caller's promise, written below. Plain C++: no CUDA header is needed to include this but cuda_runtime.h.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_KERNELS_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_KERNELS_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <span>
#include <vector>

#include "engine/kernels/adamw.h"
#include "engine/tensor/tensor_view.h"

namespace lockstep::cuda {

// ---- embedding.cu

// out[t] = table[ids[t]]: a copy. ids [T] in [0, V), table [V, D] row-major, out [T, D], one dtype.
[[nodiscard]] cudaError_t Embedding(const int32_t* ids, int64_t num_ids, const Tensor& table, const Tensor& out,
                                    cudaStream_t stream);

// The tokens of a batch by id: run r is tokens order[begin[r]] .. order[begin[r + 1] - 1], all of one id, ascending.
// Made on the host, where ids are known, and copied to the device: it replaces atomics.
struct EmbeddingRuns {
  std::vector<int32_t> order;  // [T]
  std::vector<int32_t> begin;  // [runs + 1]
};
EmbeddingRuns PlanEmbeddingRuns(std::span<const int32_t> ids);

// d_table[ids[t]] += d_out[t], ascending t for every id. ids [T]; order [T] and begin [num_runs + 1] from the plan;
// d_out [T, D]; d_table [V, D] FP32.
[[nodiscard]] cudaError_t EmbeddingBackward(const int32_t* ids, const int32_t* order, const int32_t* begin,
                                            int64_t num_runs, const Tensor& d_out, const Tensor& d_table,
                                            cudaStream_t stream);

// ---- norm.cu

// sum = store(x + delta) where delta is given (else x itself); out = store(sum * rstd * weight), rstd =
// 1/sqrt(mean(sum^2)
// + eps). The sum of squares is one fma chain in each of 8 lanes, then the lane tree. x, delta, sum, out [T, n D];
// weight [1, D]; one dtype; each row is n groups of D. delta and sum null-data: no addition; with delta, sum may alias
// either. out may alias x where there is no delta. rstd FP32 [T, n] or null.
[[nodiscard]] cudaError_t RmsNorm(const Tensor& x, const Tensor& delta, const Tensor& weight, float eps,
                                  const Tensor& sum, const Tensor& out, float* rstd, cudaStream_t stream);

// d_x = store(gradient [+ d_residual]); d_weight FP32 [1, D] is added to (null-data: not computed): rows in at most
// kNormSlices slices, one fma chain over the rows (and their groups) of a slice, then the slices ascending. Aliases as
// in ops.h: d_x may be d_out or d_residual. scratch: RmsNormBackwardScratch floats, null without d_weight.
int64_t RmsNormBackwardScratch(int64_t rows, int64_t weight_cols);
[[nodiscard]] cudaError_t RmsNormBackward(const Tensor& d_out, const Tensor& x, const Tensor& weight, const float* rstd,
                                          const Tensor& d_residual, const Tensor& d_x, const Tensor& d_weight,
                                          float* scratch, cudaStream_t stream);

// ---- rotary_activation.cu

// Rotary embedding in place on x [T, num_heads * E]. positions [T] in [0, rows of cos_sin); cos_sin [max_positions, E]
// FP32, dense: cosines then sines. backward: the transposed rotation.
[[nodiscard]] cudaError_t Rope(const Tensor& x, int64_t num_heads, int64_t head_dim, const int32_t* positions,
                               const Tensor& cos_sin, bool backward, cudaStream_t stream);

struct QkvShape {
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // G
  int64_t head_dim = 0;      // E, even
};
// The end of the QKV projection in one pass. qkv [T, (H + 2G) E]: either in the storage dtype, with null-data bias, or
// FP32 sums of the GEMM with bias [1, (H + 2G) E] in the storage dtype: then y = store(sum + bias), as Linear does. q =
// rope(y) to q_out [T, H E] (it may alias the first columns of qkv where the dtypes are equal), rope(k) and v to the
// pages: keys [page][G][E][16], values [page][G][16][E], both in the storage dtype (KvPages of ops.h). positions [T];
// slots [T] = page * 16 + position % 16, or -1: a padded row, whose q is computed and whose k and v are dropped. Two
// rows have different slots.
[[nodiscard]] cudaError_t RopeWriteKv(const QkvShape& shape, const Tensor& qkv, const Tensor& bias,
                                      const int32_t* positions, const int32_t* slots, const Tensor& cos_sin,
                                      const Tensor& q_out, void* key_pages, void* value_pages, cudaStream_t stream);

// out = store(silu(gate) * up); gate_up [T, 2F], out [T, F]. exp is the shared polynomial.
[[nodiscard]] cudaError_t SwiGlu(const Tensor& gate_up, const Tensor& out, cudaStream_t stream);
[[nodiscard]] cudaError_t SwiGluBackward(const Tensor& d_out, const Tensor& gate_up, const Tensor& d_gate_up,
                                         cudaStream_t stream);

// ---- log_prob.cu

// What is known of a row after the logits so far: z = logit * inverse_temperature.
struct LogitState {
  float max = 0;       // of z
  float sum = 0;       // of exp(z - max)
  float weighted = 0;  // of exp(z - max) z
  float target = 0;    // z of the target, once seen
};

// Takes logits FP32 [T, count], columns vocab_begin .. of the vocabulary, into states [T]. vocab_begin is a multiple of
// kVocabularyChunk (0 starts afresh), and calls come in ascending order, so that the caller's chunks do not enter the
// bits. inverse_temperature [T]; targets [T], or null. scratch: LogProbAccumulateScratch floats, null where that is 0:
// with at most kVocabularyChunk logits a row.
int64_t LogProbAccumulateScratch(int64_t rows, int64_t count);
[[nodiscard]] cudaError_t LogProbAccumulate(const Tensor& logits, int64_t vocab_begin, const int32_t* targets,
                                            const float* inverse_temperature, LogitState* states, float* scratch,
                                            cudaStream_t stream);
// log_prob = z_target - lse, entropy = lse - sum p z, lse = max + log(sum). Any output [T] may be null.
[[nodiscard]] cudaError_t LogProbFinish(const LogitState* states, int64_t rows, float* log_prob, float* entropy,
                                        float* lse, cudaStream_t stream);
// In place: logits[t, v] = coefficient[t] * inverse_temperature[t] * (onehot(target) - exp(z - lse[t])), FP32.
[[nodiscard]] cudaError_t LogProbGradient(const Tensor& logits, int64_t vocab_begin, const int32_t* targets,
                                          const float* inverse_temperature, const float* coefficient, const float* lse,
                                          cudaStream_t stream);

// ---- sampling.cu

// One draw: the transform and the key of rollout_server/sampler.h. temperature 0 is greedy.
struct SamplingRow {
  float temperature = 1;
  float top_p = 1;
  uint32_t top_k = 0;
  uint32_t sample_index = 0;
  uint32_t token_index = 0;
  uint64_t seed = 0;
  uint64_t group_id = 0;
};

// The token and log-prob that the CPU's Sampler draws: the same Philox word, the same cumulated masses in the same
// order. logits FP32 [T, V], finite; rows [T]; lse [T] = LogProbFinish at the row's temperature (not read for greedy
// rows); tokens, log_probs [T]. scratch: SampleScratchBytes, 8-byte aligned.
// Two things differ from the CPU's: with top_k or top_p log_prob holds the device's FP64 log, which may be another last
// bit before it is rounded to FP32; and the head that top_p keeps is bounded by FP64 sums in another order, so that a
// head whose mass is top_p to 1e-13 may have one token more or less.
int64_t SampleScratchBytes(int64_t rows, int64_t vocab_size);
[[nodiscard]] cudaError_t Sample(const Tensor& logits, const SamplingRow* rows, const float* lse, int32_t* tokens,
                                 float* log_probs, void* scratch, cudaStream_t stream);

// ---- optimizer.cu

// What a step does with its gradients; stays on the device, so that the host need not wait between norm and update.
struct StepControl {
  double norm = 0;            // of the unscaled gradient, before clipping
  float grad_multiplier = 0;  // clip / loss scale
  int32_t finite = 0;         // 0: the update changes nothing
};

// control from the flat gradient [n] (scaled by `scale`): the norm as engine/kernels/optimizer.h sums it, chunks of
// kGradNormChunk in 4 lanes of FP64, chunks ascending; finite exactly if all elements are. clip = limit / (norm + 1e-6)
// where limit > 0 and norm > limit, else 1. Ranks that must agree combine `finite` between this and AdamW. scratch:
// GradNormScratch doubles.
int64_t GradNormScratch(int64_t n);
[[nodiscard]] cudaError_t GradNorm(const float* grad, int64_t n, double scale, double limit, double* scratch,
                                   StepControl* control, cudaStream_t stream);

// AdamW of engine/kernels/optimizer.h on flat FP32 arenas [n], with the gradient multiplier and the finite flag of
// `control` (params.grad_multiplier is not read). copy: the updated parameters rounded to copy_dtype, or null; it is
// not touched either where the step is skipped. 30 bytes an element with a 16-bit copy.
[[nodiscard]] cudaError_t AdamW(const AdamWParams& params, const StepControl* control, float* param, float* m, float* v,
                                const float* grad, int64_t n, DType copy_dtype, void* copy, cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_KERNELS_H_
