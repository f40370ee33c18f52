#include "engine/kernels/contract.h"
#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/decode_rows.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void AdvanceKernel(DecodeRows rows, int64_t count, const int32_t* sampled) {
  AwaitPrevious();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count || rows.row_sequence[i] < 0) return;
  const int32_t position = rows.positions[i] + 1;
  const int64_t at = position / kPageTokens;
  const bool inside = position < rows.max_positions && at < rows.table_stride;
  const int32_t page = inside ? rows.block_table[i * rows.table_stride + at] : -1;
  if (page < 0) {  // its token and position stay valid ones
    rows.row_sequence[i] = -1;
    rows.slots[i] = -1;
    return;
  }
  rows.tokens[i] = sampled[i];
  rows.positions[i] = position;
  rows.slots[i] = page * static_cast<int32_t>(kPageTokens) + position % static_cast<int32_t>(kPageTokens);
  ++rows.sampling[i].token_index;
}

__global__ void TakeTokensKernel(const int32_t* from, const int32_t* given, const int32_t* sampled, int64_t count,
                                 int32_t* tokens) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) tokens[i] = from[i] < 0 ? given[i] : sampled[from[i]];
}

}  // namespace

cudaError_t AdvanceRows(const DecodeRows& rows, int64_t count, const int32_t* sampled, cudaStream_t stream) {
  return LaunchBehind(AdvanceKernel, CeilDiv(count, kThreads), 1, kThreads, 0, stream, rows, count, sampled);
}

cudaError_t TakeTokens(const int32_t* from, const int32_t* given, const int32_t* sampled, int64_t count,
                       int32_t* tokens, cudaStream_t stream) {
  return Launch(TakeTokensKernel, CeilDiv(count, kThreads), 1, kThreads, stream, from, given, sampled, count, tokens);
}

}  // namespace lockstep::cuda
