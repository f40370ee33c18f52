// The router of a mixture of experts. A warp has a token: its 32 threads walk the logits together, exponents are summed
// by every thread in the CPU's order from values that are exchanged, so that all know the sum.
#include <bit>
#include <limits>

#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/cuda/moe.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTokens = kThreads / kWarp;  // of a block

struct RouterArgs {
  Rows<const float> logits;
  int64_t rows, n, top_k;
  bool normalize;
};

__device__ int WarpLane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ int64_t WarpToken() { return int64_t{blockIdx.x} * kTokens + threadIdx.x / kWarp; }

// The larger, the earlier the expert is chosen: by logit, of equal ones the lower expert, NaN behind everything. Never
// 0 and different for every expert.
__device__ uint64_t ChoiceKey(float z, int64_t expert) {
  const uint32_t bits = std::bit_cast<uint32_t>(z == 0.0f ? 0.0f : z);  // the zeros are equal
  const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (uint64_t{z != z ? 0u : ordered} << 32) | (0xFFFFFFFFu - static_cast<uint32_t>(expert));
}

// The K-th largest key: in each of K passes the largest below the last one, so that no thread remembers what is taken.
__device__ uint64_t LastChosenKey(const float* z, int64_t n, int64_t top_k) {
  uint64_t last = ~uint64_t{0};
  for (int64_t taken = 0; taken < top_k; ++taken) {
    uint64_t best = 0;
    for (int64_t i = WarpLane(); i < n; i += kWarp) {
      const uint64_t key = ChoiceKey(z[i], i);
      if (key < last && key > best) best = key;
    }
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const uint64_t other = __shfl_xor_sync(kFullWarp, best, step);
      if (other > best) best = other;
    }
    last = best;
  }
  return last;
}

// The experts of `z` whose key is at least that of the last, ascending.
__device__ void WriteChosen(const float* z, int64_t n, uint64_t last_key, int32_t* experts) {
  const unsigned below = (1u << WarpLane()) - 1;
  int64_t written = 0;
  for (int64_t base = 0; base < n; base += kWarp) {
    const int64_t i = base + WarpLane();
    const bool chosen = i < n && ChoiceKey(z[i], i) >= last_key;
    const unsigned votes = __ballot_sync(kFullWarp, chosen);
    if (chosen) experts[written + __popc(votes & below)] = static_cast<int32_t>(i);
    written += __popc(votes);
  }
}

// What exponents are taken relative to: the largest logit, of the chosen ones with `normalize`; NaN when any is.
__device__ float Shift(const float* z, const RouterArgs& a, const int32_t* chosen) {
  float largest = -std::numeric_limits<float>::infinity();
  bool unordered = false;
  for (int64_t i = WarpLane(); i < a.n; i += kWarp) {
    unordered = unordered || z[i] != z[i];
    if (!a.normalize) largest = ScalarLane::Max(largest, z[i]);
  }
  if (a.normalize) {
    for (int64_t j = WarpLane(); j < a.top_k; j += kWarp) largest = ScalarLane::Max(largest, z[chosen[j]]);
  }
  if (__ballot_sync(kFullWarp, unordered) != 0) return std::numeric_limits<float>::quiet_NaN();
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    largest = ScalarLane::Max(largest, __shfl_xor_sync(kFullWarp, largest, step));
  }
  return largest;
}

// Over the chosen ones in their order.
__device__ float SumExpChosen(const float* z, const RouterArgs& a, const int32_t* chosen, float shift) {
  float sum = 0;
  for (int64_t base = 0; base < a.top_k; base += kWarp) {
    const int64_t j = base + WarpLane();
    const float e = j < a.top_k ? Exp(z[chosen[j]] - shift) : 0.0f;
    const int count = static_cast<int>(a.top_k - base < kWarp ? a.top_k - base : kWarp);
    for (int from = 0; from < count; ++from) sum += __shfl_sync(kFullWarp, e, from);
  }
  return sum;
}

// Over all: thread l has virtual lane l mod 8. A zero behind the end changes no bit, since no sum is -0.
__device__ float SumExpAll(const float* z, int64_t n, float shift) {
  const int lane = WarpLane() % static_cast<int>(kVirtualLanes);
  float sum = 0;
  for (int64_t base = 0; base < n; base += kWarp) {
    const int64_t i = base + WarpLane();
    const float e = i < n ? Exp(z[i] - shift) : 0.0f;
#pragma unroll
    for (int from = 0; from < kWarp; from += kVirtualLanes) sum += __shfl_sync(kFullWarp, e, from + lane);
  }
  return SumLanes(sum, kFullWarp);
}

__device__ float SumExp(const float* z, const RouterArgs& a, const int32_t* chosen, float shift) {
  return a.normalize ? SumExpChosen(z, a, chosen, shift) : SumExpAll(z, a.n, shift);
}

__device__ void WriteWeights(const float* z, const RouterArgs& a, const int32_t* chosen, float* weights) {
  const float shift = Shift(z, a, chosen);
  const float sum = SumExp(z, a, chosen, shift);
  for (int64_t j = WarpLane(); j < a.top_k; j += kWarp) weights[j] = Exp(z[chosen[j]] - shift) / sum;
}

__global__ void RouteTopKKernel(RouterArgs a, int32_t* experts, float* weights) {
  const int64_t t = WarpToken();
  if (t >= a.rows) return;
  const float* z = a.logits.data + t * a.logits.stride;
  WriteChosen(z, a.n, LastChosenKey(z, a.n, a.top_k), experts + t * a.top_k);
  __syncwarp();  // the warp reads what its threads wrote
  WriteWeights(z, a, experts + t * a.top_k, weights + t * a.top_k);
}

__global__ void RouteGivenKernel(RouterArgs a, const int32_t* experts, float* weights) {
  const int64_t t = WarpToken();
  if (t >= a.rows) return;
  WriteWeights(a.logits.data + t * a.logits.stride, a, experts + t * a.top_k, weights + t * a.top_k);
}

// d_z = products (of the chosen) - q sum products.
__global__ void RouteBackwardKernel(RouterArgs a, const int32_t* experts, const float* products, Rows<float> d_logits) {
  const int64_t t = WarpToken();
  if (t >= a.rows) return;
  const float* z = a.logits.data + t * a.logits.stride;
  const int32_t* chosen = experts + t * a.top_k;
  float* d = d_logits.data + t * d_logits.stride;
  const float shift = Shift(z, a, chosen);
  const float sum = SumExp(z, a, chosen, shift);
  float total = 0;
  for (int64_t j = 0; j < a.top_k; ++j) total += products[t * a.top_k + j];
  for (int64_t i = WarpLane(); i < a.n; i += kWarp) {
    d[i] = a.normalize ? 0.0f : -total * (Exp(z[i] - shift) / sum);
  }
  __syncwarp();
  for (int64_t j = WarpLane(); j < a.top_k; j += kWarp) {
    const int32_t i = chosen[j];
    const float spread = a.normalize ? -total * (Exp(z[i] - shift) / sum) : d[i];
    d[i] = spread + products[t * a.top_k + j];
  }
}

RouterArgs ArgsOf(const Tensor& logits, int64_t top_k, bool normalize) {
  LOCKSTEP_CHECK(logits.dtype == DType::kF32, "a router computes in fp32");
  LOCKSTEP_CHECK(logits.cols <= 0x7FFFFFFF && top_k >= 1 && top_k <= logits.cols, "a token has 1 to N experts");
  return {RowsOf<const float>(logits), logits.rows, logits.cols, top_k, normalize};
}

}  // namespace

cudaError_t RouteTopK(const Tensor& logits, int64_t top_k, bool normalize, int32_t* experts, float* weights,
                      cudaStream_t stream) {
  const RouterArgs args = ArgsOf(logits, top_k, normalize);
  return Launch(RouteTopKKernel, CeilDiv(args.rows, kTokens), 1, kThreads, stream, args, experts, weights);
}

cudaError_t RouteGiven(const Tensor& logits, const int32_t* experts, int64_t top_k, bool normalize, float* weights,
                       cudaStream_t stream) {
  const RouterArgs args = ArgsOf(logits, top_k, normalize);
  return Launch(RouteGivenKernel, CeilDiv(args.rows, kTokens), 1, kThreads, stream, args, experts, weights);
}

cudaError_t RouteTopKBackward(const Tensor& logits, const int32_t* experts, int64_t top_k, bool normalize,
                              const float* products, const Tensor& d_logits, cudaStream_t stream) {
  const RouterArgs args = ArgsOf(logits, top_k, normalize);
  LOCKSTEP_CHECK(d_logits.dtype == DType::kF32 && d_logits.rows == logits.rows && d_logits.cols == logits.cols,
                 "the gradient of a router's logits is FP32, in their shape");
  LOCKSTEP_CHECK(d_logits.data != logits.data || logits.data == nullptr, "the logits are read again");
  return Launch(RouteBackwardKernel, CeilDiv(args.rows, kTokens), 1, kThreads, stream, args, experts, products,
                RowsOf<float>(d_logits));
}

}  // namespace lockstep::cuda
