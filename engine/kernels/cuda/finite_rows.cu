#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/finite_rows.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 1024;

struct MarkArgs {
  Rows<const float> logits;
  int64_t vocab_size;
  const SamplingRow* rows;
  const float* lse;
  float* log_probs;
};

// A float is not finite when its exponent bits are all ones.
__device__ int IsNonfinite(float value) {
  constexpr uint32_t kExponent = 0x7F800000u;
  return (std::bit_cast<uint32_t>(value) & kExponent) == kExponent ? 1 : 0;
}

// A block has a row.
__global__ __launch_bounds__(kThreads) void MarkNonfiniteKernel(MarkArgs a) {
  __shared__ int shared[kThreads / kWarp];
  AwaitPrevious();
  const int64_t row = blockIdx.x;
  const float* logits = a.logits.data + row * a.logits.stride;
  int bad = 0;
#pragma unroll 4
  for (int64_t v = int64_t{threadIdx.x} * kVector; v < a.vocab_size; v += kThreads * kVector) {
    float eight[kVector];
    Load(logits + v, a.vocab_size - v, eight);
#pragma unroll
    for (int i = 0; i < kVector; ++i) bad |= IsNonfinite(eight[i]);
  }
  bad = BlockSum(bad, shared);
  if (threadIdx.x != 0) return;
  if (a.rows[row].temperature != 0) bad += IsNonfinite(a.lse[row]);
  if (bad > 0) a.log_probs[row] = std::bit_cast<float>(0x7FC00000u);
}

}  // namespace

cudaError_t MarkNonfinite(const Tensor& logits, const SamplingRow* rows, const float* lse, float* log_probs,
                          cudaStream_t stream) {
  LOCKSTEP_CHECK(logits.dtype == DType::kF32 && logits.cols > 0, "a row of FP32 logits has tokens");
  const MarkArgs args = {RowsOf<const float>(logits), logits.cols, rows, lse, log_probs};
  return LaunchBehind(MarkNonfiniteKernel, logits.rows, 1, kThreads, 0, stream, args);
}

}  // namespace lockstep::cuda
