// Log-sum-exp, log-prob and entropy over chunks of FP32 logits, and the gradient of the logits. The contract is an
// online softmax over vocabulary chunks of 4096 in ascending order, 8 chains each; only the merge is a chain over
// chunks. A block has a chunk: all threads bring it to shared memory and take its exponents, eight sum them. A call
// with one chunk (training) is one launch; with more, the running maxima come first (a maximum has no order), then the
// sums of all chunks side by side, then the merge.
#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMergeThreads = 64;
constexpr int kChunk = static_cast<int>(kVocabularyChunk);

__device__ float NegativeInfinity() { return -std::bit_cast<float>(0x7F800000u); }

struct AccumulateArgs {
  Rows<const float> logits;
  int64_t count, vocab_begin, chunks;
  const int32_t* targets;
  const float* inverse_temperature;
  LogitState* states;
  float *maxima, *sums, *weighted;  // [rows, chunks], of the chunks of a call; not used where it has one
};

// The row and chunk of a block.
struct ChunkPlace {
  int64_t row, chunk;
  const float* logits;
  int count;
  float inverse;
};
__device__ ChunkPlace PlaceOf(const AccumulateArgs& a) {
  const int64_t row = blockIdx.x / a.chunks, chunk = blockIdx.x % a.chunks, first = chunk * kChunk;
  const int count = a.count - first < kChunk ? static_cast<int>(a.count - first) : kChunk;
  return {row, chunk, a.logits.data + row * a.logits.stride + first, count, a.inverse_temperature[row]};
}

// The later of two maxima where it is larger; a NaN is not.
__device__ float RunningMax(float running, float next) { return running < next ? next : running; }

__global__ void MaximaKernel(AccumulateArgs a) {
  __shared__ float warp_max[kThreads / kWarp];
  AwaitPrevious();
  const ChunkPlace place = PlaceOf(a);
  float largest = NegativeInfinity();
#pragma unroll 8
  for (int i = static_cast<int>(threadIdx.x); i < place.count; i += kThreads) {
    largest = ScalarLane::Max(place.logits[i] * place.inverse, largest);
  }
  largest = BlockMax<kThreads>(largest, warp_max);
  if (threadIdx.x == 0) a.maxima[blockIdx.x] = largest;
}

// The sums of a chunk, of threads 0 .. 7.
struct ChunkSums {
  float sum, weighted;
};

// z: logits times inverse temperature, in shared memory, each where its thread wrote it; masses gets exp(z - center).
__device__ ChunkSums SumChunk(const float* z, int count, float center, float* masses) {
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) masses[i] = Exp(z[i] - center);
  __syncthreads();
  ChunkSums sums = {0, 0};
  if (threadIdx.x >= kVirtualLanes) return sums;
#pragma unroll 8
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(kVirtualLanes)) {
    sums.sum += masses[i];
    sums.weighted = fmaf(masses[i], z[i], sums.weighted);
  }
  return {SumLanes(sums.sum, LaneGroupMask()), SumLanes(sums.weighted, LaneGroupMask())};
}

// `sums` are relative to `max`, which is not below the state's.
__device__ void MergeSums(LogitState& state, float alpha, float max, const ChunkSums& sums) {
  state.sum = state.sum * alpha + sums.sum;
  state.weighted = state.weighted * alpha + sums.weighted;
  state.max = max;
}

__device__ LogitState StateBefore(const AccumulateArgs& a, int64_t row) {
  return a.vocab_begin > 0 ? a.states[row] : LogitState{NegativeInfinity(), 0, 0, 0};
}

__device__ void StoreStateOf(const AccumulateArgs& a, int64_t row, LogitState state) {
  if (a.targets != nullptr) {
    const int64_t target = a.targets[row] - a.vocab_begin;
    if (target >= 0 && target < a.count) {
      state.target = a.logits.data[row * a.logits.stride + target] * a.inverse_temperature[row];
    }
  }
  a.states[row] = state;
}

// kWhole: the chunk is the call's only one, so that the block takes it into the state; else its sums are kept.
template <bool kWhole>
__global__ void SumsKernel(AccumulateArgs a) {
  __shared__ float z[kChunk], masses[kChunk];
  __shared__ float warp_max[kThreads / kWarp];
  AwaitPrevious();
  const ChunkPlace place = PlaceOf(a);
  float largest = NegativeInfinity();
#pragma unroll 8
  for (int i = static_cast<int>(threadIdx.x); i < place.count; i += kThreads) {
    z[i] = place.logits[i] * place.inverse;
    largest = ScalarLane::Max(z[i], largest);
  }
  if constexpr (!kWhole) {  // of this chunk and those before it
    const float* maxima = a.maxima + place.row * a.chunks;
    largest = NegativeInfinity();
    for (int64_t c = threadIdx.x; c <= place.chunk; c += kThreads) largest = ScalarLane::Max(maxima[c], largest);
  }
  const LogitState before = StateBefore(a, place.row);
  const float center = RunningMax(before.max, BlockMax<kThreads>(largest, warp_max));
  const ChunkSums sums = SumChunk(z, place.count, center, masses);
  if (threadIdx.x != 0) return;
  if constexpr (kWhole) {
    LogitState state = before;
    MergeSums(state, Exp(state.max - center), center, sums);
    StoreStateOf(a, place.row, state);
  } else {
    a.sums[blockIdx.x] = sums.sum;
    a.weighted[blockIdx.x] = sums.weighted;
  }
}

// A block has a row: factors side by side, then one thread goes over the chunks.
__global__ void MergeKernel(AccumulateArgs a) {
  __shared__ float maxima[kMergeThreads + 1];  // the state's, then of the chunks
  __shared__ float alphas[kMergeThreads], running[kMergeThreads];
  __shared__ ChunkSums sums[kMergeThreads];
  AwaitPrevious();
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  LogitState state = StateBefore(a, row);
  for (int64_t first = 0; first < a.chunks; first += kMergeThreads) {
    const int count = a.chunks - first < kMergeThreads ? static_cast<int>(a.chunks - first) : kMergeThreads;
    const int64_t at = row * a.chunks + first + thread;
    if (thread == 0) maxima[0] = state.max;
    if (thread < count) {
      maxima[thread + 1] = a.maxima[at];
      sums[thread] = {a.sums[at], a.weighted[at]};
    }
    __syncthreads();
    if (thread < count) {
      float before = maxima[0];
      for (int c = 1; c <= thread; ++c) before = RunningMax(before, maxima[c]);
      running[thread] = RunningMax(before, maxima[thread + 1]);
      alphas[thread] = Exp(before - running[thread]);
    }
    __syncthreads();
    if (thread == 0) {
      for (int c = 0; c < count; ++c) MergeSums(state, alphas[c], running[c], sums[c]);
    }
    __syncthreads();
  }
  if (thread == 0) StoreStateOf(a, row, state);
}

__global__ void FinishKernel(const LogitState* states, int64_t rows, float* log_prob, float* entropy, float* lse) {
  AwaitPrevious();
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const LogitState state = states[row];
  const float log_sum = state.max + Log(state.sum);
  if (log_prob != nullptr) log_prob[row] = state.target - log_sum;
  if (entropy != nullptr) entropy[row] = log_sum - state.weighted / state.sum;
  if (lse != nullptr) lse[row] = log_sum;
}

struct GradientArgs {
  Rows<float> logits;
  int64_t count, vocab_begin;
  const int32_t* targets;
  const float* inverse_temperature;
  const float* coefficient;
  const float* lse;
};

__global__ void GradientKernel(GradientArgs a) {
  const int64_t row = blockIdx.x;
  const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kVector;
  if (i >= a.count) return;
  float* z = a.logits.data + row * a.logits.stride + i;
  const float inverse = a.inverse_temperature[row], lse = a.lse[row];
  const float scale = a.coefficient[row] * inverse;
  const int64_t target = a.targets[row] - a.vocab_begin - i;
  float v[kVector];
  Load(z, a.count - i, v);
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    v[j] = Exp(v[j] * inverse - lse) * -scale;
    if (j == target) v[j] += scale;
  }
  Store(z, a.count - i, v);
}

void CheckLogits(const Tensor& logits, int64_t vocab_begin) {
  LOCKSTEP_CHECK(logits.dtype == DType::kF32 && logits.cols > 0, "logits are FP32");
  LOCKSTEP_CHECK(vocab_begin >= 0 && vocab_begin % kVocabularyChunk == 0, "logits come in whole vocabulary chunks");
}

}  // namespace

int64_t LogProbAccumulateScratch(int64_t rows, int64_t count) {
  const int64_t chunks = CeilDiv(count, kVocabularyChunk);
  return chunks > 1 ? 3 * rows * chunks : 0;
}

cudaError_t LogProbAccumulate(const Tensor& logits, int64_t vocab_begin, const int32_t* targets,
                              const float* inverse_temperature, LogitState* states, float* scratch,
                              cudaStream_t stream) {
  CheckLogits(logits, vocab_begin);
  const int64_t chunks = CeilDiv(logits.cols, kVocabularyChunk), blocks = logits.rows * chunks;
  AccumulateArgs args = {.logits = RowsOf<const float>(logits),
                         .count = logits.cols,
                         .vocab_begin = vocab_begin,
                         .chunks = chunks,
                         .targets = targets,
                         .inverse_temperature = inverse_temperature,
                         .states = states,
                         .maxima = nullptr,
                         .sums = nullptr,
                         .weighted = nullptr};
  if (chunks == 1) return LaunchBehind(SumsKernel<true>, blocks, 1, kThreads, 0, stream, args);
  LOCKSTEP_CHECK(scratch != nullptr, "more than one vocabulary chunk takes LogProbAccumulateScratch floats");
  args.maxima = scratch;
  args.sums = scratch + blocks;
  args.weighted = scratch + 2 * blocks;
  cudaError_t error = LaunchBehind(MaximaKernel, blocks, 1, kThreads, 0, stream, args);
  if (error == cudaSuccess) error = LaunchBehind(SumsKernel<false>, blocks, 1, kThreads, 0, stream, args);
  if (error == cudaSuccess) error = LaunchBehind(MergeKernel, logits.rows, 1, kMergeThreads, 0, stream, args);
  return error;
}

cudaError_t LogProbFinish(const LogitState* states, int64_t rows, float* log_prob, float* entropy, float* lse,
                          cudaStream_t stream) {
  return LaunchBehind(FinishKernel, CeilDiv(rows, kThreads), 1, kThreads, 0, stream, states, rows, log_prob, entropy,
                      lse);
}

cudaError_t LogProbGradient(const Tensor& logits, int64_t vocab_begin, const int32_t* targets,
                            const float* inverse_temperature, const float* coefficient, const float* lse,
                            cudaStream_t stream) {
  CheckLogits(logits, vocab_begin);
  const GradientArgs args = {RowsOf<float>(logits), logits.cols, vocab_begin, targets,
                             inverse_temperature,   coefficient, lse};
  return Launch(GradientKernel, logits.rows, CeilDiv(logits.cols, kThreads * kVector), kThreads, stream, args);
}

}  // namespace lockstep::cuda
