// Logits and draws of some rows: what a decode step and a mixed step do behind the forward pass.
#ifndef LOCKSTEP_ENGINE_CUDA_DRAWING_H_
#define LOCKSTEP_ENGINE_CUDA_DRAWING_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/cuda/device_decoder.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/tensor/carver.h"

namespace lockstep::cuda {

struct DrawScratch {
  Tensor logits;                 // [rows, V] FP32
  LogitState* states = nullptr;  // [rows]
  float* lse = nullptr;          // [rows]
  void* shared = nullptr;        // of the softmax, then of the draw
};
DrawScratch CarveDraws(int64_t rows, int64_t vocab_size, Carver& carver);

// What is drawn, and where to; device memory, [R] each.
struct DrawRows {
  const SamplingRow* sampling = nullptr;
  const float* inverse_temperature = nullptr;  // 1 for greedy rows
  int32_t* tokens = nullptr;
  float* log_probs = nullptr;
};

// A row that nothing can be drawn from (MarkNonfinite) gets a log-prob that is not a number, and a token without
// meaning.
//
// One draw from each row of hidden [R, D], final norm applied; as many rows at a time as the scratch has. Neither
// allocates nor waits.
absl::Status Draw(DeviceDecoder& decoder, const DeviceWeights& weights, const Tensor& hidden, const DrawRows& rows,
                  const DrawScratch& scratch);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_DRAWING_H_
