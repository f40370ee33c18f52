// Log-sum-exp, log-prob and entropy over chunks of FP32 logits, and the gradient of the logits. The contract is an
// online softmax over vocabulary chunks of 4096 in ascending order; only the merge is a chain over chunks. Once the
// running maxima are known (a maximum has no order), the sums of all chunks are independent: eight threads have a
// chunk.
#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kGroups = kThreads / static_cast<int>(kVirtualLanes);
// Vocabulary chunks between two merges: 262,144 logits.
constexpr int kChunksAtOnce = 64;

__device__ float NegativeInfinity() { return -std::bit_cast<float>(0x7F800000u); }

struct AccumulateArgs {
  Rows<const float> logits;
  int64_t count, vocab_begin;
  const int32_t* targets;
  const float* inverse_temperature;
  LogitState* states;
};

struct ChunkSums {
  float max[kChunksAtOnce];  // of the chunk, then of all up to it
  float sum[kChunksAtOnce];
  float weighted[kChunksAtOnce];
};

// The sums of one chunk around `center`, by the eight threads of a group; thread 0 of them writes.
__device__ void SumChunk(const float* logits, int64_t count, float inverse, float center, float& sum, float& weighted) {
  const int64_t lane = threadIdx.x % kVirtualLanes;
  float sums = 0, products = 0;
#pragma unroll 4
  for (int64_t i = lane; i < count; i += kVirtualLanes) {
    const float z = logits[i] * inverse;
    const float p = Exp(z - center);
    sums += p;
    products = fmaf(p, z, products);
  }
  sums = SumLanes(sums, LaneGroupMask());
  products = SumLanes(products, LaneGroupMask());
  if (lane != 0) return;
  sum = sums;
  weighted = products;
}

__device__ float MaxOfChunk(const float* logits, int64_t count, float inverse) {
  float largest = NegativeInfinity();
#pragma unroll 4
  for (int64_t i = threadIdx.x % kVirtualLanes; i < count; i += kVirtualLanes) {
    largest = ScalarLane::Max(logits[i] * inverse, largest);
  }
  return MaxLanes(largest, LaneGroupMask());
}

// A block has a row.
__global__ void AccumulateKernel(AccumulateArgs a) {
  __shared__ ChunkSums chunks;
  const int64_t row = blockIdx.x;
  const float* logits = a.logits.data + row * a.logits.stride;
  const float inverse = a.inverse_temperature[row];
  const int group = static_cast<int>(threadIdx.x / kVirtualLanes);
  LogitState state = {NegativeInfinity(), 0, 0, 0};
  if (a.vocab_begin > 0) state = a.states[row];
  for (int64_t begin = 0; begin < a.count; begin += kChunksAtOnce * kVocabularyChunk) {
    const int64_t left = (a.count - begin + kVocabularyChunk - 1) / kVocabularyChunk;
    const int in_round = left < kChunksAtOnce ? static_cast<int>(left) : kChunksAtOnce;
    const auto length = [&](int chunk) {
      const int64_t rest = a.count - begin - chunk * kVocabularyChunk;
      return rest < kVocabularyChunk ? rest : kVocabularyChunk;
    };
    for (int c = group; c < in_round; c += kGroups) {
      const float largest = MaxOfChunk(logits + begin + c * kVocabularyChunk, length(c), inverse);
      if (threadIdx.x % kVirtualLanes == 0) chunks.max[c] = largest;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      float running = state.max;
      for (int c = 0; c < in_round; ++c) chunks.max[c] = running = running < chunks.max[c] ? chunks.max[c] : running;
    }
    __syncthreads();
    for (int c = group; c < in_round; c += kGroups) {
      SumChunk(logits + begin + c * kVocabularyChunk, length(c), inverse, chunks.max[c], chunks.sum[c],
               chunks.weighted[c]);
    }
    __syncthreads();
    for (int c = 0; c < in_round; ++c) {  // every thread has the state, so that none waits for another's
      const float alpha = Exp(state.max - chunks.max[c]);
      state.sum = state.sum * alpha + chunks.sum[c];
      state.weighted = state.weighted * alpha + chunks.weighted[c];
      state.max = chunks.max[c];
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  if (a.targets != nullptr) {
    const int64_t target = a.targets[row] - a.vocab_begin;
    if (target >= 0 && target < a.count) state.target = logits[target] * inverse;
  }
  a.states[row] = state;
}

__global__ void FinishKernel(const LogitState* states, int64_t rows, float* log_prob, float* entropy, float* lse) {
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
  LOCKSTEP_CHECK(logits.dtype == DType::kF32, "logits are FP32");
  LOCKSTEP_CHECK(vocab_begin >= 0 && vocab_begin % kVocabularyChunk == 0, "logits come in whole vocabulary chunks");
}

}  // namespace

cudaError_t LogProbAccumulate(const Tensor& logits, int64_t vocab_begin, const int32_t* targets,
                              const float* inverse_temperature, LogitState* states, cudaStream_t stream) {
  CheckLogits(logits, vocab_begin);
  const AccumulateArgs args = {RowsOf<const float>(logits), logits.cols, vocab_begin, targets,
                               inverse_temperature,         states};
  return Launch(AccumulateKernel, logits.rows, 1, kThreads, stream, args);
}

cudaError_t LogProbFinish(const LogitState* states, int64_t rows, float* log_prob, float* entropy, float* lse,
                          cudaStream_t stream) {
  return Launch(FinishKernel, CeilDiv(rows, kThreads), 1, kThreads, stream, states, rows, log_prob, entropy, lse);
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
