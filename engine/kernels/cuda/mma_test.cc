// The bricks for tensor cores in emulation: which thread holds what, the product, and when asynchronous copies land.
#include "engine/kernels/cuda/mma.cuh"

#include <cmath>

#include "engine/kernels/cuda/emulation_test_util.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

// d [16][8] += a [16][16] b [8 columns][16], with operands by ldmatrix as mma.cuh says.
template <typename T>
__global__ void ProductKernel(const T* a, const T* b, float* d) {
  __shared__ Pack<T> shared_a[32], shared_b[16];
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  CpAsync16(&shared_a[lane], a + lane * kVector, true);
  CpAsync16(&shared_b[lane % 16], b + lane % 16 * kVector, true);
  CpAsyncCommit();
  CpAsyncWait<0>();
  __syncthreads();
  uint32_t left[4], right[2];
  LdMatrix4(left, &shared_a[lane % 16 * 2 + lane / 16]);
  LdMatrix2(right, &shared_b[lane % 8 * 2 + lane / 8 % 2]);
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  Mma16816<T>(sum, left, right);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

class MmaTest : public KernelTest {};
INSTANTIATE_TEST_SUITE_P(DTypes, MmaTest, testing::Values(DType::kF16, DType::kBF16), DTypeTestName);

TEST_P(MmaTest, TheProductIsAChainOverAscendingKFromD) {
  const Matrix a = Make(16, 16, 1), b = Make(8, 16, 2), start(DType::kF32, 16, 8, 3);
  // Rows of a Matrix may be padded; the kernel takes dense ones.
  std::vector<uint16_t> dense_a(256), dense_b(128);
  ConvertFromFloat(dtype(), a.Read().data(), dense_a.data(), dense_a.size());
  ConvertFromFloat(dtype(), b.Read().data(), dense_b.data(), dense_b.size());
  std::vector<float> expected = start.Read();
  const std::vector<float> left = a.Read(), right = b.Read();
  for (size_t row = 0; row < 16; ++row) {
    for (size_t column = 0; column < 8; ++column) {
      for (size_t k = 0; k < 16; ++k) {
        float& sum = expected[row * 8 + column];
        sum = std::fma(left[row * 16 + k], right[column * 16 + k], sum);
      }
    }
  }
  alignas(16) uint16_t shared_a[256], shared_b[128];
  std::copy(dense_a.begin(), dense_a.end(), shared_a);
  std::copy(dense_b.begin(), dense_b.end(), shared_b);
  InEveryOrder([&] {
    std::vector<float> d = start.Read();
    ASSERT_EQ(WithStorageType(dtype(),
                              [&]<typename T>(T) {
                                if constexpr (sizeof(T) == 2) {
                                  return Launch(ProductKernel<T>, 1, 1, 32, {}, reinterpret_cast<const T*>(shared_a),
                                                reinterpret_cast<const T*>(shared_b), d.data());
                                }
                                return cudaErrorInvalidValue;
                              }),
              cudaSuccess);
    ExpectSameFloats(d, expected, "product");
  });
}

TEST_P(MmaTest, APairIsRoundedAndTheLowerIndexIsLow) {
  uint16_t halves[2];
  const float values[2] = {1.00048828125f, -3.0f};  // the first is halfway between two FP16 numbers
  ConvertFromFloat(dtype(), values, halves, 2);
  const uint32_t expected = halves[0] | (uint32_t{halves[1]} << 16);
  EXPECT_EQ(
      dtype() == DType::kF16 ? PackPair<__half>(values[0], values[1]) : PackPair<__nv_bfloat16>(values[0], values[1]),
      expected);
}

// words[form][thread]: x4, x4 transposed, x2, x2 transposed of 32 rows of 8.
__global__ void LoadKernel(const uint16_t* rows, uint32_t* words) {
  __shared__ Pack<uint16_t> shared[32];
  for (int i = 0; i < kVector; ++i) shared[threadIdx.x].at[i] = rows[threadIdx.x * kVector + i];
  __syncthreads();
  uint32_t four[4], two[2];
  LdMatrix4(four, &shared[threadIdx.x]);
  for (int j = 0; j < 4; ++j) words[0 * 128 + j * 32 + threadIdx.x] = four[j];
  LdMatrix4Trans(four, &shared[threadIdx.x]);
  for (int j = 0; j < 4; ++j) words[1 * 128 + j * 32 + threadIdx.x] = four[j];
  LdMatrix2(two, &shared[threadIdx.x]);
  for (int j = 0; j < 2; ++j) words[2 * 128 + j * 32 + threadIdx.x] = two[j];
  LdMatrix2Trans(two, &shared[threadIdx.x]);
  for (int j = 0; j < 2; ++j) words[3 * 128 + j * 32 + threadIdx.x] = two[j];
}

TEST(LdMatrixTest, AThreadGetsARowOrAColumn) {
  std::vector<uint16_t> rows(256);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint16_t>(1000 + i);
  InEveryOrder([&] {
    std::vector<uint32_t> words(512);
    ASSERT_EQ(Launch(LoadKernel, 1, 1, 32, {}, rows.data(), words.data()), cudaSuccess);
    for (size_t form = 0; form < 4; ++form) {
      for (size_t j = 0; j < (form < 2 ? 4u : 2u); ++j) {
        for (size_t lane = 0; lane < 32; ++lane) {
          const size_t g = lane / 4, t = lane % 4, matrix = 64 * j;
          const bool transposed = form % 2 == 1;
          const size_t low = matrix + (transposed ? 2 * t * 8 + g : g * 8 + 2 * t), high = low + (transposed ? 8 : 1);
          EXPECT_EQ(words[form * 128 + j * 32 + lane], rows[low] | (uint32_t{rows[high]} << 16)) << form << " " << lane;
        }
      }
    }
  });
}

__global__ void CopiesKernel(const unsigned char* from, unsigned char* to, bool wait) {
  unsigned char* shared = DynamicShared();
  CpAsync16(shared, from, true);
  CpAsyncCommit();
  CpAsync16(shared + 16, from + 16, false);
  CpAsyncCommit();
  CpAsync16(shared + 32, from + 32, true);
  CpAsyncCommit();
  if (wait) CpAsyncWait<1>();
  for (int i = 0; i < 48; ++i) to[i] = shared[i];
  CpAsyncWait<0>();
  for (int i = 0; i < 48; ++i) to[48 + i] = shared[i];
}

TEST(CpAsyncTest, CopiesLandWhenTheyAreWaitedForAndWhatIsNotValidIsZeros) {
  alignas(16) unsigned char from[48];
  for (int i = 0; i < 48; ++i) from[i] = static_cast<unsigned char>(i + 1);
  for (const bool wait : {false, true}) {
    unsigned char to[96] = {};
    ASSERT_EQ(LaunchShared(CopiesKernel, 1, 1, 1, 48, {}, from, to, wait), cudaSuccess);
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(to[i], wait ? i + 1 : 0xFF);
      EXPECT_EQ(to[16 + i], wait ? 0 : 0xFF);
      EXPECT_EQ(to[32 + i], 0xFF);
      EXPECT_EQ(to[48 + i], i + 1);
      EXPECT_EQ(to[64 + i], 0);
      EXPECT_EQ(to[80 + i], i + 33);
    }
  }
}

TEST(CpAsyncTest, InTheDescendingOrderTheyLandAtOnce) {
  alignas(16) unsigned char from[48];
  for (int i = 0; i < 48; ++i) from[i] = static_cast<unsigned char>(i + 1);
  unsigned char to[96] = {};
  emulation::SetOrder(emulation::Order::kDescending);
  ASSERT_EQ(LaunchShared(CopiesKernel, 1, 1, 1, 48, {}, from, to, false), cudaSuccess);
  emulation::SetOrder(emulation::Order::kAscending);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(to[i], i + 1);
    EXPECT_EQ(to[16 + i], 0);
    EXPECT_EQ(to[32 + i], i + 33);
  }
}

__global__ void AbandonedKernel(const unsigned char* from) { CpAsync16(DynamicShared(), from, true); }
__global__ void CrookedKernel(const unsigned char* from) { CpAsync16(DynamicShared() + 8, from, true); }
__global__ void CrookedRowKernel(uint32_t* out) {
  LdMatrix4(*reinterpret_cast<uint32_t(*)[4]>(out), DynamicShared() + 2);
}

TEST(CpAsyncDeathTest, WhatTheDeviceWouldNotTakeEndsWithOneLine) {
  alignas(16) unsigned char from[16] = {};
  uint32_t out[4] = {};
  EXPECT_DEATH(static_cast<void>(LaunchShared(AbandonedKernel, 1, 1, 1, 32, {}, from)), "copies on their way");
  EXPECT_DEATH(static_cast<void>(LaunchShared(CrookedKernel, 1, 1, 1, 32, {}, from)), "multiples of 16");
  EXPECT_DEATH(static_cast<void>(LaunchShared(CrookedRowKernel, 1, 1, 32, 1024, {}, out)), "multiple of 16");
}

__global__ void NothingKernel() {}

// As a launcher does that asks for nothing.
cudaError_t LaunchUnasked(void (*kernel)(), size_t shared) {
  cudaLaunchConfig_t config = {};
  config.gridDim = config.blockDim = dim3(1, 1, 1);
  config.dynamicSmemBytes = shared;
  return cudaLaunchKernelEx(&config, kernel);
}

TEST(LaunchSharedTest, ABlockHas48KiBWithItsStaticMemoryUnlessItsKernelAsksForMore) {
  EXPECT_EQ(LaunchUnasked(NothingKernel, 40 << 10), cudaSuccess);
  EXPECT_EQ(LaunchUnasked(NothingKernel, 48 << 10), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchShared(NothingKernel, 1, 1, 32, 48 << 10, {}), cudaSuccess);
  EXPECT_EQ(LaunchShared(NothingKernel, 1, 1, 32, kSharedMax, {}), cudaSuccess);
}

TEST(LaunchSharedDeathTest, MoreThanEveryDeviceHasEndsWithOneLine) {
  EXPECT_DEATH(static_cast<void>(LaunchShared(NothingKernel, 1, 1, 32, kSharedMax + 1, {})), "what every device has");
}

}  // namespace
}  // namespace lockstep::cuda
