// The vocabulary end of the model: log-prob, entropy and log-sum-exp in chunks, and the gradient. Contracts:
// engine/kernels/ops.h. At most kRowChunk x kVocabularyChunk logits exist at a time.
//
// Reduction order of log-sum-exp, per row: the vocabulary in chunks of kVocabularyChunk (matched; native LogProb: a
// quarter of it) ascending; in a chunk the maximum, then sum of exp(z - m') in 8 lanes and the lane tree; chunks merge
// as online softmax, l' = l exp(m - m') + sum. Entropy = lse - sum_v p_v z_v, with sum_v exp(z - m') z carried beside
// l.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_LOG_PROB_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_LOG_PROB_H_

#include <cstdint>
#include <span>

#include "engine/kernels/contract.h"
#include "engine/kernels/cpu/context.h"
#include "engine/kernels/packed_matrix.h"
#include "engine/tensor/tensor.h"

namespace lockstep::cpu {

inline constexpr int64_t kRowChunk = 512;

void LogProb(CpuContext& context, const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets,
             float temperature, float* log_prob, float* entropy, float* lse);
// The gradient of the logits stays FP32 until it enters the products.
void LogProbBackward(CpuContext& context, const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets,
                     float temperature, const float* coefficient, const float* lse, const Tensor& d_x,
                     const Tensor& d_w);
float LogSumExp(const float* logits, int64_t vocab_size, float temperature);

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_LOG_PROB_H_
