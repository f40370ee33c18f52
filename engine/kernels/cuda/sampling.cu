// One token a row, as rollout_server/sampler.cc draws it: an inverse CDF with one Philox uniform, FP64 masses summed in
// the sampler's order. The masses of the blocks of a plain row are summed side by side in a launch of their own; what
// the order makes a chain, one thread adds up in shared memory, and all threads look for the end. top_k and top_p find
// the key of the last kept token bit by bit (32 passes over the row, no sort), then keep what is above it, of equal
// ones the lowest ids. A block of threads has a row.
#include "engine/base/philox.h"
#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 1024;
static_assert(kThreads >= kSamplerBlock, "a thread has a token of the block that a draw walks");
// Of the launch for the masses of blocks.
constexpr int kMassThreads = 256;
constexpr int kMassGroups = kMassThreads / static_cast<int>(kVirtualLanes);

struct SampleArgs {
  Rows<const float> logits;
  int64_t vocab_size;
  const SamplingRow* rows;
  const float* lse;
  int32_t* tokens;
  float* log_probs;
  double* masses;  // [rows, V]
  int32_t* kept;   // [rows, V]
};

// What the threads of a block share.
struct Shared {
  float mass[kSamplerBlock];
  double sums[kThreads];
  double doubles[kThreads / kWarp];
  int ints[kThreads / kWarp];
  float values[kThreads / kWarp];
  int32_t ids[kThreads / kWarp];
  double total;
  int64_t index;
};

// One row as its block sees it.
struct Row {
  const float* logits;
  int64_t vocab_size;
  float inverse_temperature;
  double u;
  double* masses;
  int32_t* kept;

  // exp(z - center), z - center at most 0: rounding may leave the likeliest token a hair above.
  __device__ float Mass(int64_t id, float center) const {
    return Exp(ScalarLane::Min(logits[id] * inverse_temperature - center, 0.0f));
  }
};

__device__ Row RowOf(const SampleArgs& a, int64_t index, const SamplingRow& transform) {
  Row row = {a.logits.data + index * a.logits.stride,
             a.vocab_size,
             0,
             0,
             a.masses + index * a.vocab_size,
             a.kept + index * a.vocab_size};
  if (transform.temperature == 0) return row;
  const auto words =
      Philox4x32(transform.seed, transform.group_id, (uint64_t{transform.sample_index} << 32) | transform.token_index);
  row.u = UniformOpen52(words[0], words[1]);
  row.inverse_temperature = 1.0f / transform.temperature;
  return row;
}

__device__ bool IsCut(const SamplingRow& transform, int64_t vocab_size) {
  return (transform.top_k > 0 && transform.top_k < vocab_size) || transform.top_p < 1;
}

// Larger logits have larger keys; -0 and 0 have one.
__device__ uint32_t KeyOf(float logit) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// A logit and its id; no id is -1.
struct Candidate {
  float value = 0;
  int32_t id = -1;
};
// The larger, of equal ones the lower id.
__device__ Candidate Better(const Candidate& a, const Candidate& b) {
  if (b.id < 0) return a;
  return a.id < 0 || b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

// The largest logit's id (of equal ones the smallest), to all threads.
__device__ int32_t ArgMax(const Row& row, Shared& shared) {
  Candidate best;
#pragma unroll 4
  for (int64_t v = threadIdx.x; v < row.vocab_size; v += kThreads) {
    best = Better(best, {row.logits[v], static_cast<int32_t>(v)});
  }
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    best = Better(best, {__shfl_xor_sync(kFullWarp, best.value, step), __shfl_xor_sync(kFullWarp, best.id, step)});
  }
  if (threadIdx.x % kWarp == 0) {
    shared.values[threadIdx.x / kWarp] = best.value;
    shared.ids[threadIdx.x / kWarp] = best.id;
  }
  __syncthreads();
  best = {};
  for (int w = 0; w < kThreads / kWarp; ++w) best = Better(best, {shared.values[w], shared.ids[w]});
  __syncthreads();
  return best.id;
}

// Makes ascending sums of `values`, which other threads have written, one chain; their total to all threads.
__device__ double Cumulate(double* values, int64_t count, Shared& shared) {
  double cumulated = 0;  // of thread 0
  for (int64_t first = 0; first < count; first += kThreads) {
    const int here = count - first < kThreads ? static_cast<int>(count - first) : kThreads;
    const int i = static_cast<int>(threadIdx.x);
    if (i < here) shared.sums[i] = values[first + i];
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll 8
      for (int j = 0; j < here; ++j) shared.sums[j] = cumulated += shared.sums[j];
      shared.total = cumulated;
    }
    __syncthreads();
    if (i < here) values[first + i] = shared.sums[i];
  }
  __syncthreads();
  return shared.total;
}

// The first of `count` ascending sums that exceeds target, or the last; to all threads.
__device__ int64_t UpperBound(const double* sums, int64_t count, double target, Shared& shared) {
  if (threadIdx.x == 0) shared.index = count - 1;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    if (sums[i] > target && (i == 0 || !(sums[i - 1] > target))) shared.index = i;
  }
  __syncthreads();
  const int64_t index = shared.index;
  __syncthreads();
  return index;
}

// masses[b] = sum of masses of block b: 8 FP64 lanes, folded in lane order. Eight threads have a block of a plain row.
__global__ __launch_bounds__(kMassThreads) void BlockMassesKernel(SampleArgs a, int64_t blocks, int64_t parts) {
  AwaitPrevious();
  const int64_t index = blockIdx.x / parts;
  const int64_t block = blockIdx.x % parts * kMassGroups + threadIdx.x / kVirtualLanes;
  const SamplingRow transform = a.rows[index];
  if (block >= blocks || transform.temperature == 0 || IsCut(transform, a.vocab_size)) return;  // all eight
  const Row row = RowOf(a, index, transform);
  const float lse = a.lse[index];
  const int lane = static_cast<int>(threadIdx.x % kVirtualLanes);
  const unsigned mask = LaneGroupMask();
  const int64_t begin = block * kSamplerBlock, rest = row.vocab_size - begin;
  const int count = static_cast<int>(rest < kSamplerBlock ? rest : kSamplerBlock);
  double sum = 0;
#pragma unroll 8
  for (int i = lane; i < count; i += static_cast<int>(kVirtualLanes)) sum += row.Mass(begin + i, lse);
  double folded = 0;
#pragma unroll
  for (int from = 0; from < kVirtualLanes; ++from) {
    folded += __shfl_sync(mask, sum, from, static_cast<int>(kVirtualLanes));
  }
  if (lane == 0) row.masses[block] = folded;
}

// The draw from all tokens; token and log_prob are thread 0's.
__device__ void SampleAll(const Row& row, float lse, Shared& shared, int32_t& token, float& log_prob) {
  const int64_t blocks = (row.vocab_size + kSamplerBlock - 1) / kSamplerBlock;
  const double target = row.u * Cumulate(row.masses, blocks, shared);
  const int64_t block = UpperBound(row.masses, blocks, target, shared), begin = block * kSamplerBlock;
  const int count = static_cast<int>(row.vocab_size - begin < kSamplerBlock ? row.vocab_size - begin : kSamplerBlock);
  const int i = static_cast<int>(threadIdx.x);
  if (i < count) shared.mass[i] = row.Mass(begin + i, lse);
  __syncthreads();
  if (i == 0) {
    double cumulated = block == 0 ? 0 : row.masses[block - 1];
#pragma unroll 8
    for (int j = 0; j < count; ++j) shared.sums[j] = cumulated += static_cast<double>(shared.mass[j]);
    shared.index = -1;
  }
  __syncthreads();
  if (i < count && shared.sums[i] > target && (i == 0 || !(shared.sums[i - 1] > target))) shared.index = i;
  __syncthreads();
  if (i != 0) return;
  int64_t chosen = shared.index;
  // The walk's sum and the block's differ in rounding; what falls between them goes to the last token with mass.
  if (chosen < 0) chosen = count - 1;
  while (chosen > 0 && shared.mass[chosen] <= 0) --chosen;
  token = static_cast<int32_t>(begin + chosen);
  log_prob = row.logits[token] * row.inverse_temperature - lse;
}

// The kept head: all keys above `key`, and of those equal to it the `ties` lowest ids.
struct Head {
  uint32_t key;
  int64_t ties;
};

// Tokens whose key is at least `key`.
__device__ int64_t CountFrom(const Row& row, uint32_t key, Shared& shared) {
  int count = 0;
#pragma unroll 8
  for (int64_t v = threadIdx.x; v < row.vocab_size; v += kThreads) count += KeyOf(row.logits[v]) >= key ? 1 : 0;
  return BlockSum(count, shared.ints);
}

__device__ Head TopK(const Row& row, int64_t k, Shared& shared) {
  uint32_t key = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = key | (1u << bit);
    if (CountFrom(row, candidate, shared) >= k) key = candidate;
  }
  const int64_t above = key == 0xFFFFFFFFu ? 0 : CountFrom(row, key + 1, shared);
  return {key, k - above};
}

// Mass of the head's tokens whose key is at least `key`. `tie`: mass of one token at the head's own key.
__device__ double MassFrom(const Row& row, const Head& head, uint32_t key, float largest, float tie, Shared& shared) {
  double mass = 0;
#pragma unroll 4
  for (int64_t v = threadIdx.x; v < row.vocab_size; v += kThreads) {
    const uint32_t own = KeyOf(row.logits[v]);
    if (own >= key && own > head.key) mass += row.Mass(v, largest);
  }
  mass = BlockSum(mass, shared.doubles);
  return key <= head.key ? mass + static_cast<double>(tie) * static_cast<double>(head.ties) : mass;
}

// Mass of a token that has this key.
__device__ float MassOfKey(const Row& row, uint32_t key, float largest) {
  const float logit = std::bit_cast<float>((key >> 31) != 0 ? key & 0x7FFFFFFFu : ~key);
  return Exp(ScalarLane::Min(logit * row.inverse_temperature - largest, 0.0f));
}

// The smallest head of `head` with top_p of its mass.
__device__ Head TopP(const Row& row, const Head& head, float top_p, float largest, Shared& shared) {
  const float tie = head.ties > 0 ? MassOfKey(row, head.key, largest) : 0.0f;
  const double wanted = static_cast<double>(top_p) * MassFrom(row, head, 0, largest, tie, shared);
  uint32_t key = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = key | (1u << bit);
    if (MassFrom(row, head, candidate, largest, tie, shared) >= wanted) key = candidate;
  }
  if (key < head.key) return head;
  const double above = key == 0xFFFFFFFFu ? 0 : MassFrom(row, head, key + 1, largest, tie, shared);
  const float own = MassOfKey(row, key, largest);
  const int64_t equal = key == head.key ? head.ties : CountFrom(row, key, shared) - CountFrom(row, key + 1, shared);
  int64_t ties = 1;
  while (ties < equal && above + static_cast<double>(ties) * static_cast<double>(own) < wanted) ++ties;
  return {key, ties};
}

// kept and masses of the head, ascending ids; returns how many.
__device__ int64_t Compact(const Row& row, const Head& head, float largest, Shared& shared) {
  int64_t count = 0, ties = 0;
  for (int64_t begin = 0; begin < row.vocab_size; begin += kThreads) {
    const int64_t v = begin + threadIdx.x;
    const bool inside = v < row.vocab_size;
    const uint32_t key = inside ? KeyOf(row.logits[v]) : 0;
    int equal = 0, keeping = 0;
    const int tie_rank = BlockRank(inside && key == head.key, shared.ints, equal);
    const bool keep = inside && (key > head.key || (key == head.key && ties + tie_rank < head.ties));
    const int rank = BlockRank(keep, shared.ints, keeping);
    if (keep) {
      row.kept[count + rank] = static_cast<int32_t>(v);
      row.masses[count + rank] = row.Mass(v, largest);
    }
    count += keeping;
    ties += equal;
  }
  __syncthreads();
  return count;
}

__device__ void SampleHead(const Row& row, const SamplingRow& transform, Shared& shared, int32_t& token,
                           float& log_prob) {
  const float largest = row.logits[ArgMax(row, shared)] * row.inverse_temperature;
  Head head = {0, row.vocab_size};
  const bool restricted = transform.top_k > 0 && transform.top_k < row.vocab_size;
  if (restricted) head = TopK(row, transform.top_k, shared);
  if (!restricted && transform.top_p < 1) head = {0, 0};  // no key is 0: all tokens are above
  if (transform.top_p < 1) head = TopP(row, head, transform.top_p, largest, shared);
  const int64_t count = Compact(row, head, largest, shared);
  const double cumulated = Cumulate(row.masses, count, shared);
  const int64_t kept = UpperBound(row.masses, count, row.u * cumulated, shared);
  if (threadIdx.x != 0) return;
  token = row.kept[kept];
  const float lse = static_cast<float>(static_cast<double>(largest) + log(cumulated));
  log_prob = count == 1 ? 0.0f : row.logits[token] * row.inverse_temperature - lse;
}

__global__ __launch_bounds__(kThreads) void SampleKernel(SampleArgs a) {
  __shared__ Shared shared;
  AwaitPrevious();
  const int64_t index = blockIdx.x;
  const SamplingRow transform = a.rows[index];
  const Row row = RowOf(a, index, transform);
  int32_t token = 0;
  float log_prob = 0;
  if (transform.temperature == 0) {
    token = ArgMax(row, shared);
  } else if (IsCut(transform, a.vocab_size)) {
    SampleHead(row, transform, shared, token, log_prob);
  } else {
    SampleAll(row, a.lse[index], shared, token, log_prob);
  }
  if (threadIdx.x != 0) return;
  a.tokens[index] = token;
  a.log_probs[index] = log_prob;
}

}  // namespace

int64_t SampleScratchBytes(int64_t rows, int64_t vocab_size) {
  return rows * vocab_size * static_cast<int64_t>(sizeof(double) + sizeof(int32_t));
}

cudaError_t Sample(const Tensor& logits, const SamplingRow* rows, const float* lse, int32_t* tokens, float* log_probs,
                   void* scratch, cudaStream_t stream) {
  LOCKSTEP_CHECK(logits.dtype == DType::kF32 && logits.cols > 0, "a row of FP32 logits has tokens");
  LOCKSTEP_CHECK(logits.cols <= kGridXMax, "token ids are 32 bits");
  double* masses = static_cast<double*>(scratch);
  const SampleArgs args = {RowsOf<const float>(logits),
                           logits.cols,
                           rows,
                           lse,
                           tokens,
                           log_probs,
                           masses,
                           reinterpret_cast<int32_t*>(masses + logits.rows * logits.cols)};
  const int64_t blocks = CeilDiv(logits.cols, kSamplerBlock), parts = CeilDiv(blocks, kMassGroups);
  const cudaError_t error =
      LaunchBehind(BlockMassesKernel, logits.rows * parts, 1, kMassThreads, 0, stream, args, blocks, parts);
  if (error != cudaSuccess) return error;
  return LaunchBehind(SampleKernel, logits.rows, 1, kThreads, 0, stream, args);
}

}  // namespace lockstep::cuda
