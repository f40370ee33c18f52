// The inputs of a decode step, kept on the device from step to step: what the host need not send again. As in
// kernels.h: device memory, work on `stream`, nothing waits or allocates.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_DECODE_ROWS_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_DECODE_ROWS_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/kernels/cuda/kernels.h"

namespace lockstep::cuda {

// B rows, one sequence each: row i has its pages in block_table[i].
struct DecodeRows {
  int32_t* tokens = nullptr;             // [B]
  int32_t* positions = nullptr;          // [B] of the tokens
  int32_t* slots = nullptr;              // [B] page * 16 + position % 16; -1: a padded row
  int32_t* row_sequence = nullptr;       // [B] i; -1: a padded row
  SamplingRow* sampling = nullptr;       // [B]
  const int32_t* block_table = nullptr;  // [B, table_stride]; -1 where a sequence has no page
  int64_t table_stride = 0;
  int64_t max_positions = 0;
};

// The inputs of the step after the one that drew `sampled` [B]: its token, the next position and draw, the slot of its
// page. A row whose next position has no page, or is beyond max_positions, is padded from then on, as padded rows stay.
[[nodiscard]] cudaError_t AdvanceRows(const DecodeRows& rows, int64_t count, const int32_t* sampled,
                                      cudaStream_t stream);

// tokens[i] = from[i] < 0 ? given[i] : sampled[from[i]]: rows of a new batch whose token only the device knows so far.
[[nodiscard]] cudaError_t TakeTokens(const int32_t* from, const int32_t* given, const int32_t* sampled, int64_t count,
                                     int32_t* tokens, cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_DECODE_ROWS_H_
