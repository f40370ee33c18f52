// Experts as the bytes of a recorded routing, both ways.
#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/cuda/moe.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kCountThreads = 1024;  // one block counts, so that the counts need no atomics

__device__ int32_t ReadId(const uint8_t* ids, int64_t j, int64_t id_bytes) {
  return id_bytes == 1 ? ids[j] : ids[2 * j] | ids[2 * j + 1] << 8;
}

__global__ void RecordKernel(const int32_t* experts, int64_t pairs, int64_t top_k, RoutingPlace place,
                             uint8_t* record) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= pairs) return;
  uint8_t* id = record + at / top_k * place.row_bytes + place.layer_offset + at % top_k * place.id_bytes;
  id[0] = static_cast<uint8_t>(experts[at]);
  if (place.id_bytes == 2) id[1] = static_cast<uint8_t>(experts[at] >> 8);
}

struct GivenArgs {
  const uint8_t* given;
  const uint8_t* has_given;
  RoutingPlace place;
  int64_t tokens, top_k;
};

__global__ void CountKernel(GivenArgs a, const int32_t* experts, RoutingCounts* counts) {
  __shared__ int64_t shared[kCountThreads / kWarp];
  int64_t choices = 0, differing = 0;
  for (int64_t t = threadIdx.x; t < a.tokens; t += blockDim.x) {
    if (a.has_given[t] == 0) continue;
    const uint8_t* ids = a.given + t * a.place.row_bytes + a.place.layer_offset;
    bool same = true;
    for (int64_t j = 0; j < a.top_k; ++j) {
      same = same && ReadId(ids, j, a.place.id_bytes) == experts[t * a.top_k + j];
    }
    ++choices;
    differing += same ? 0 : 1;
  }
  choices = BlockSum(choices, shared);
  differing = BlockSum(differing, shared);
  if (threadIdx.x == 0) *counts = {counts->choices + choices, counts->differing + differing};
}

__global__ void TakeKernel(GivenArgs a, int32_t* experts) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, t = at / a.top_k;
  if (t >= a.tokens || a.has_given[t] == 0) return;
  const uint8_t* ids = a.given + t * a.place.row_bytes + a.place.layer_offset;
  experts[at] = ReadId(ids, at % a.top_k, a.place.id_bytes);
}

void CheckPlace(const RoutingPlace& place, int64_t top_k) {
  LOCKSTEP_CHECK(place.id_bytes == 1 || place.id_bytes == 2, "a recorded expert has one byte or two");
  LOCKSTEP_CHECK(
      top_k >= 1 && place.layer_offset >= 0 && place.layer_offset + top_k * place.id_bytes <= place.row_bytes,
      "the layer's experts lie within a row");
}

}  // namespace

cudaError_t RecordExperts(const int32_t* experts, int64_t tokens, int64_t top_k, const RoutingPlace& place,
                          uint8_t* record, cudaStream_t stream) {
  CheckPlace(place, top_k);
  return Launch(RecordKernel, CeilDiv(tokens * top_k, kThreads), 1, kThreads, stream, experts, tokens * top_k, top_k,
                place, record);
}

cudaError_t TakeGivenExperts(const uint8_t* given, const uint8_t* has_given, const RoutingPlace& place, int64_t tokens,
                             int64_t top_k, bool replay, int32_t* experts, RoutingCounts* counts, cudaStream_t stream) {
  CheckPlace(place, top_k);
  const GivenArgs args = {given, has_given, place, tokens, top_k};
  if (counts != nullptr && tokens > 0) {
    const cudaError_t error = Launch(CountKernel, 1, 1, kCountThreads, stream, args, experts, counts);
    if (error != cudaSuccess) return error;
  }
  if (!replay) return cudaSuccess;
  return Launch(TakeKernel, CeilDiv(tokens * top_k, kThreads), 1, kThreads, stream, args, experts);
}

}  // namespace lockstep::cuda
