// The vocabulary end of the model on the device: log-prob, entropy and their gradient in chunks of rows and of the
// vocabulary, so that at most kLogitRows x kLogitColumns logits exist at a time. Operations and order of sums: LogProb
// and LogProbBackward of engine/kernels/ops.h, by the launchers of kernels.h.
#ifndef LOCKSTEP_ENGINE_CUDA_DEVICE_LOG_PROB_H_
#define LOCKSTEP_ENGINE_CUDA_DEVICE_LOG_PROB_H_

#include <cstdint>

#include "engine/cuda/device.h"
#include "engine/kernels/contract.h"
#include "engine/kernels/cuda/gemm.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/tensor/carver.h"

namespace lockstep::cuda {

inline constexpr int64_t kLogitRows = 2048;
inline constexpr int64_t kLogitColumns = kVocabularyChunk;

struct LogProbScratch {
  Tensor logits;                 // [rows, kLogitColumns] FP32
  Tensor d_logits;               // the same in the storage dtype; with FP32, `logits` itself
  Tensor d_x;                    // [rows, D] FP32
  LogitState* states = nullptr;  // [rows]
};
LogProbScratch CarveLogProb(DType dtype, int64_t rows, int64_t hidden_size, int64_t vocab_size, Carver& carver);

// R rows whose log-prob is wanted.
struct LogProbRows {
  Tensor x;                                    // [R, D], final norm applied
  const int32_t* targets = nullptr;            // [R]
  const float* inverse_temperature = nullptr;  // [R]
};

// log_prob, entropy, lse [R]; entropy may be null. output [V, D].
void LogProb(Calls& run, DeviceGemm& gemm, const LogProbRows& rows, const Tensor& output, const LogProbScratch& scratch,
             float* log_prob, float* entropy, float* lse, cudaStream_t stream);

// Gradient of sum_i coefficient[i] log_prob[i]: d_x [R, D] in the storage dtype; d_output [V, D] FP32 is added to
// (null-data: not computed). The gradient of the logits is rounded to the storage dtype, in which tensor cores
// multiply: the coefficients must bear the loss scale. d_x is summed over the vocabulary in FP32 and rounded once.
void LogProbBackward(Calls& run, DeviceGemm& gemm, const LogProbRows& rows, const Tensor& output,
                     const LogProbScratch& scratch, const float* coefficient, const float* lse, const Tensor& d_x,
                     const Tensor& d_output, cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_DEVICE_LOG_PROB_H_
