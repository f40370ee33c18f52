// Four adjacent threads have a block's four lanes, so that each of their loads is one sector of 32 bytes; the words of
// several steps are loaded before the first is used, since a lane is one chain of multiplications.
#include "engine/base/digest.h"
#include "engine/base/digest_steps.h"
#include "engine/kernels/cuda/digest.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 8;  // steps
constexpr int64_t kBlockBytes = static_cast<int64_t>(kDigestBlockBytes);

struct DigestArgs {
  const unsigned char* data;
  int64_t bytes;
  int64_t blocks;
  uint64_t* digests;
};

__device__ uint64_t Bytes(const unsigned char* at, int64_t count) {
  uint64_t word = 0;
  for (int i = 0; i < 8 && i < count; ++i) word |= uint64_t{at[i]} << (8 * i);
  return word;
}

template <bool kAligned>
__device__ uint64_t Word(const unsigned char* at) {
  if constexpr (kAligned) {
    return *reinterpret_cast<const uint64_t*>(at);
  } else {
    return Bytes(at, 8);
  }
}

template <bool kAligned>
__global__ void DigestsOfBlocksKernel(DigestArgs a) {
  const int64_t block = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / digest::kLanes;
  const int lane = static_cast<int>(threadIdx.x) % digest::kLanes;
  const int64_t begin = block * kBlockBytes, rest = a.bytes - begin;
  // Threads beyond the last block come along to the exchange, with nothing.
  const int64_t bytes = block >= a.blocks ? 0 : rest < kBlockBytes ? rest : kBlockBytes;
  const unsigned char* at = a.data + begin + 8 * lane;
  uint64_t state = digest::LaneStart(lane, 0);
  int64_t steps = bytes / digest::kStepBytes;
  for (; steps >= kAhead; steps -= kAhead, at += kAhead * digest::kStepBytes) {
    uint64_t words[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) words[i] = Word<kAligned>(at + i * digest::kStepBytes);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) state = digest::LaneStep(state, words[i]);
  }
  for (; steps > 0; --steps, at += digest::kStepBytes) state = digest::LaneStep(state, Word<kAligned>(at));
  const uint64_t tail = Bytes(at, bytes % digest::kStepBytes - 8 * lane);
  uint64_t end = digest::EndStart(0, static_cast<uint64_t>(bytes));
  for (int i = 0; i < digest::kLanes; ++i) {
    const uint64_t its_state = __shfl_sync(0xFFFFFFFFu, state, i, digest::kLanes);
    const uint64_t its_tail = __shfl_sync(0xFFFFFFFFu, tail, i, digest::kLanes);
    end = digest::EndStep(end, its_state, its_tail);
  }
  if (lane == 0 && block < a.blocks) a.digests[block] = digest::End(end);
}

}  // namespace

cudaError_t DigestsOfBlocks(const void* data, int64_t bytes, uint64_t* digests, cudaStream_t stream) {
  LOCKSTEP_CHECK(bytes >= 0, "a number of bytes");
  const int64_t blocks = CeilDiv(bytes, kBlockBytes);
  const DigestArgs args = {static_cast<const unsigned char*>(data), bytes, blocks, digests};
  const auto kernel = reinterpret_cast<uintptr_t>(data) % sizeof(uint64_t) == 0 ? DigestsOfBlocksKernel<true>
                                                                                : DigestsOfBlocksKernel<false>;
  return Launch(kernel, CeilDiv(blocks * digest::kLanes, kThreads), 1, kThreads, stream, args);
}

}  // namespace lockstep::cuda
