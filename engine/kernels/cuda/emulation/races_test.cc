#include "engine/kernels/cuda/emulation/races.h"

#include <cuda_runtime.h>
#include <tensor_core.h>

#include <vector>

#include "engine/kernels/cuda/emulation/fibers.h"
#include "gtest/gtest.h"

namespace lockstep::emulation {
namespace {

void RunKernel(unsigned blocks, unsigned threads, void (*kernel)(int*), int* out) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks, 1, 1);
  config.blockDim = dim3(threads, 1, 1);
  config.dynamicSmemBytes = 4096;
  ASSERT_EQ(cudaLaunchKernelEx(&config, kernel, out), cudaSuccess);
}

// `kernel` has a race in every order of turns, or in none.
void ExpectRace(unsigned blocks, unsigned threads, void (*kernel)(int*), const char* what) {
  for (const Order order : {Order::kAscending, Order::kDescending, Order::kShuffled}) {
    SetOrder(order);
    std::vector<int> out(4096);
    EXPECT_DEATH(RunKernel(blocks, threads, kernel, out.data()), what);
  }
  SetOrder(Order::kAscending);
}
void ExpectNone(unsigned blocks, unsigned threads, void (*kernel)(int*)) {
  for (const Order order : {Order::kAscending, Order::kDescending, Order::kShuffled}) {
    SetOrder(order);
    std::vector<int> out(4096);
    RunKernel(blocks, threads, kernel, out.data());
  }
  SetOrder(Order::kAscending);
}

class RacesDeathTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!races::Enabled()) GTEST_SKIP() << "a sanitizer has the place of the hooks";
  }
};

int Self() { return static_cast<int>(threadIdx.x); }

__global__ void BlockKernel(int* out) {
  __shared__ int values[64];
  values[Self()] = Self();
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = values[63 - Self()];
}
__global__ void NoBarrierKernel(int* out) {
  __shared__ int values[64];
  values[Self()] = Self();
  out[blockIdx.x * 64 + threadIdx.x] = values[63 - Self()];
}
// The second write needs a barrier behind the reads.
__global__ void OverwrittenKernel(int* out) {
  __shared__ int values[64];
  for (int i = 0; i < 2; ++i) {
    values[Self()] = Self() + i;
    __syncthreads();
    out[Self()] += values[63 - Self()];
  }
}

TEST_F(RacesDeathTest, OfABlockAreOrderedByItsBarrierAlone) {
  ExpectNone(2, 64, BlockKernel);
  ExpectRace(1, 64, NoBarrierKernel, "a race in shared memory");
  ExpectRace(1, 64, OverwrittenKernel, "a race in shared memory");
}

__global__ void WarpKernel(int* out) {
  __shared__ int values[64];
  values[Self()] = Self();
  __syncwarp();
  out[Self()] = values[Self() ^ 1];
}
__global__ void ShuffledWarpKernel(int* out) {
  __shared__ int values[64];
  values[Self()] = __shfl_xor_sync(0xFFFFFFFFu, Self(), 1);
  __ballot_sync(0xFFFFFFFFu, true);
  out[Self()] = values[Self() ^ 1];
}
__global__ void AcrossWarpsKernel(int* out) {
  __shared__ int values[64];
  values[Self()] = Self();
  __syncwarp();
  out[Self()] = values[Self() ^ 32];
}
// The halves of a warp meet for themselves and then read each other's.
__global__ void HalfWarpKernel(int* out) {
  __shared__ int values[32];
  values[Self()] = Self();
  __syncwarp(Self() < 16 ? 0xFFFFu : 0xFFFF0000u);
  out[Self()] = values[Self() ^ 16];
}

TEST_F(RacesDeathTest, OfAWarpAreOrderedBySyncwarpForItsMaskAndNotByShuffles) {
  ExpectNone(1, 64, WarpKernel);
  ExpectRace(1, 64, ShuffledWarpKernel, "a race in shared memory");
  ExpectRace(1, 64, AcrossWarpsKernel, "a race in shared memory");
  ExpectRace(1, 32, HalfWarpKernel, "a race in shared memory");
}

__global__ void OneElementKernel(int* out) { out[0] = Self(); }
__global__ void OwnElementsKernel(int* out) { out[blockIdx.x * 64 + threadIdx.x] = out[4000]; }
__global__ void NeighbourBytesKernel(int* out) { reinterpret_cast<char*>(out)[threadIdx.x] = 1; }

TEST_F(RacesDeathTest, BlocksAreNotOrderedAndLaunchesAre) {
  ExpectRace(2, 1, OneElementKernel, "a race in global memory: block [01] thread 0");
  ExpectNone(1, 1, OneElementKernel);
  ExpectNone(4, 32, OwnElementsKernel);
  ExpectNone(1, 64, NeighbourBytesKernel);
  int out = 0;
  RunKernel(1, 1, OneElementKernel, &out);
  RunKernel(1, 1, OneElementKernel, &out);
}

__global__ void TooEarlyKernel(int* out) {
  const int seen = out[0];
  AwaitPrevious();
  out[threadIdx.x + 1] = seen;
}

TEST_F(RacesDeathTest, AKernelThatMayBeginEarlyTouchesNothingBeforeItAwaits) {
  cudaLaunchAttribute attribute = {};
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.attrs = &attribute;
  std::vector<int> out(64);
  for (const unsigned early : {0u, 1u}) {
    config.numAttrs = early;
    const auto run = [&] { static_cast<void>(cudaLaunchKernelEx(&config, TooEarlyKernel, out.data())); };
    if (early == 0) {
      run();
    } else {
      EXPECT_DEATH(run(), "reads global memory before AwaitPrevious");
    }
  }
}

template <int kWhat>  // 0: waits and meets the others; 1: does not meet them; 2: does not wait; 3: copies too early
__global__ void CopyKernel(int* out) {
  unsigned char* const shared = cuda::instructions::DynamicShared();
  int* const mine = reinterpret_cast<int*>(shared + 16 * threadIdx.x);
  const int* const other = reinterpret_cast<int*>(shared + 16 * (threadIdx.x ^ 1));
  for (int i = 0; i < 2; ++i) {
    cuda::instructions::CopyAsync16(mine, out + 2048, false);
    cuda::instructions::CommitCopies();
    if (kWhat != 2) cuda::instructions::WaitCopies<0>();
    if (kWhat != 1) __syncthreads();
    out[threadIdx.x] += kWhat == 2 ? *mine : *other;
    if (kWhat != 3) __syncthreads();
  }
  cuda::instructions::WaitCopies<0>();
}

TEST_F(RacesDeathTest, ACopyIsAWriteUntilItIsWaitedForAndMet) {
  ExpectNone(1, 64, CopyKernel<0>);
  ExpectRace(1, 64, CopyKernel<1>, "a race in shared memory");
  ExpectRace(1, 64, CopyKernel<2>, "a race in shared memory");
  ExpectRace(1, 64, CopyKernel<3>, "a race in shared memory");
}

}  // namespace
}  // namespace lockstep::emulation
