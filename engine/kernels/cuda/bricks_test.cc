// The scalar lane of device code against the CPU's 8 lanes, over all kinds of FP32 numbers: equal bits.
#include "engine/kernels/cuda/bricks.cuh"

#include <cmath>
#include <limits>

#include "engine/kernels/cpu/vector_math.h"
#include "engine/kernels/cuda/emulation_test_util.h"

namespace lockstep::cuda {
namespace {

void ExpectSameBits(float got, float expected, float x) {
  if (std::isnan(expected)) {
    ASSERT_TRUE(std::isnan(got)) << x;
  } else {
    ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(expected)) << x << ": " << got << " " << expected;
  }
}

TEST(BricksTest, ExpAndLogHaveTheBitsOfTheCpu) {
  // Every 4099th of all bit patterns: all exponents and signs, NaN and infinity.
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 4099) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    ExpectSameBits(Exp(x), cpu::ExpScalar(x), x);
    ExpectSameBits(Log(x), cpu::LogScalar(x), x);
  }
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float x : {0.0f, -0.0f, 1.0f, infinity, -infinity, -87.33654f, 88.72283f, 88.8f, -87.4f}) {
    ExpectSameBits(Exp(x), cpu::ExpScalar(x), x);
    ExpectSameBits(Log(x), cpu::LogScalar(x), x);
  }
  // The range that matters, densely.
  for (int i = -90000; i < 90000; ++i) {
    const float x = static_cast<float>(i) * 0.001f;
    ExpectSameBits(Exp(x), cpu::ExpScalar(x), x);
  }
}

TEST(BricksTest, LoadAndStoreTakeWhatIsThereAndNoMore) {
  alignas(16) float values[20];
  for (int i = 0; i < 20; ++i) values[i] = static_cast<float>(i + 1);
  for (int offset = 0; offset < 4; ++offset) {
    for (int64_t count = 1; count <= 10; ++count) {
      float v[kVector];
      Load(values + offset, count, v);
      alignas(16) float out[20] = {};
      Store(out + offset, count, v);
      for (int i = 0; i < 20; ++i) {
        const bool inside = i >= offset && i < offset + std::min<int64_t>(count, kVector);
        EXPECT_EQ(out[i], inside ? values[i] : 0.0f);
      }
    }
  }
}

__global__ void RankKernel(const int* flags, int* ranks, int* total) {
  __shared__ int shared[8];
  int all = 0;
  ranks[threadIdx.x] = BlockRank(flags[threadIdx.x] != 0, shared, all);
  const int sum = BlockSum(flags[threadIdx.x], shared);
  if (threadIdx.x == 0) *total = all == sum ? all : -1;
}

TEST(BricksTest, BlockRankCountsTheFlagsBefore) {
  std::vector<int> flags(256), ranks(256);
  for (size_t i = 0; i < flags.size(); ++i) flags[i] = (i * i + 3 * i) % 7 < 3 ? 1 : 0;
  InEveryOrder([&] {
    int total = 0;
    cudaLaunchConfig_t config = {};
    config.blockDim = dim3(256, 1, 1);
    ASSERT_EQ(cudaLaunchKernelEx(&config, RankKernel, flags.data(), ranks.data(), &total), cudaSuccess);
    int before = 0;
    for (size_t i = 0; i < flags.size(); ++i) {
      EXPECT_EQ(ranks[i], before);
      before += flags[i];
    }
    EXPECT_EQ(total, before);
  });
}

}  // namespace
}  // namespace lockstep::cuda
