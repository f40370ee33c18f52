#include "engine/kernels/cuda/emulation/fibers.h"

#include <cuda_runtime.h>

#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace lockstep::emulation {
namespace {

cudaError_t RunKernel(unsigned blocks, unsigned threads, void (*kernel)(int*), int* out) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks, 1, 1);
  config.blockDim = dim3(threads, 1, 1);
  return cudaLaunchKernelEx(&config, kernel, out);
}

__global__ void ReverseKernel(int* out) {
  __shared__ int values[128];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
  __syncthreads();
}

TEST(FibersTest, ABarrierLetsAllThreadsSeeWhatAllWrote) {
  for (const Order order : {Order::kAscending, Order::kDescending, Order::kShuffled}) {
    SetOrder(order);
    std::vector<int> out(3 * 128, -1);
    ASSERT_EQ(RunKernel(3, 128, ReverseKernel, out.data()), cudaSuccess);
    for (int i = 0; i < 3 * 128; ++i) EXPECT_EQ(out[static_cast<size_t>(i)], 127 - i % 128);
  }
  SetOrder(Order::kAscending);
}

__global__ void WithoutABarrierKernel(int* out) {
  __shared__ int value;
  if (threadIdx.x == 0) value = static_cast<int>(blockIdx.x) + 1;
  out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

TEST(FibersTest, AMissingBarrierShowsInTheOrders) {
  std::vector<int> ascending(2 * 32), descending(2 * 32);
  SetOrder(Order::kAscending);
  ASSERT_EQ(RunKernel(2, 32, WithoutABarrierKernel, ascending.data()), cudaSuccess);
  SetOrder(Order::kDescending);
  ASSERT_EQ(RunKernel(2, 32, WithoutABarrierKernel, descending.data()), cudaSuccess);
  SetOrder(Order::kAscending);
  EXPECT_NE(ascending, descending);
}

__global__ void ShuffleKernel(int* out) {
  const unsigned mask = 0xFFu << (threadIdx.x % 32 / 8 * 8);
  int sum = static_cast<int>(threadIdx.x);
  for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(mask, sum, step);
  const unsigned odd = __ballot_sync(0xFFFFFFFFu, threadIdx.x % 2 == 1);
  out[threadIdx.x] = sum * 100 + __popc(odd);
}

TEST(FibersTest, ShufflesStayInTheirMaskAndBallotsCount) {
  std::vector<int> out(64);
  ASSERT_EQ(RunKernel(1, 64, ShuffleKernel, out.data()), cudaSuccess);
  for (int i = 0; i < 64; ++i) {
    const int first = i / 8 * 8;
    EXPECT_EQ(out[static_cast<size_t>(i)], (8 * first + 28) * 100 + 16);
  }
}

__global__ void HalfOfThemWaitKernel(int* out) {
  if (threadIdx.x % 32 < 16) __shfl_xor_sync(0xFFFFFFFFu, *out, 1);
  __syncthreads();
}

__global__ void WrongMaskKernel(int* out) { *out = __shfl_sync(0x0Fu, *out, 0); }

TEST(FibersDeathTest, WhatWouldHangAGpuEndsWithOneLine) {
  int out = 0;
  EXPECT_DEATH(static_cast<void>(RunKernel(1, 32, HalfOfThemWaitKernel, &out)), "a GPU would hang");
  EXPECT_DEATH(static_cast<void>(RunKernel(1, 32, WrongMaskKernel, &out)), "mask that does not name it");
}

cudaError_t RunEarly(void (*kernel)(int*), int* out) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(32, 1, 1);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, out);
}

__global__ void WaitingKernel(int* out) {
  AwaitPrevious();
  if (threadIdx.x == 0) *out = 1;
}
__global__ void SomeWaitKernel(int* out) {
  if (threadIdx.x > 0) return;
  AwaitPrevious();
  *out = 1;
}

TEST(FibersDeathTest, AKernelThatMayBeginEarlyAwaitsWhatPrecedesItInEveryThread) {
  int out = 0;
  ASSERT_EQ(RunEarly(WaitingKernel, &out), cudaSuccess);
  EXPECT_EQ(out, 1);
  EXPECT_DEATH(static_cast<void>(RunEarly(SomeWaitKernel, &out)), "without AwaitPrevious");
}

TEST(FibersTest, ThreadsThatEndedDoNotHoldABarrierUp) {
  std::vector<int> out(1, 0);
  const auto kernel = +[](int* to) {
    if (threadIdx.x >= 8) return;
    __syncthreads();
    if (threadIdx.x == 0) *to = 1;
  };
  ASSERT_EQ(RunKernel(1, 64, kernel, out.data()), cudaSuccess);
  EXPECT_EQ(out[0], 1);
}

TEST(FibersTest, TooManyThreadsAreRefused) {
  int out = 0;
  EXPECT_EQ(RunKernel(1, 1025, ShuffleKernel, &out), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace lockstep::emulation
