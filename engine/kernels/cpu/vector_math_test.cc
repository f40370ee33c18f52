// The shared polynomials against double precision, and the promise that a tail gives the bits of a full vector.
#include "engine/kernels/cpu/vector_math.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace lockstep::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Distance in units of the last place of the exact value.
double Ulps(float got, double exact) {
  const int exponent = std::max(std::ilogb(exact), -126);
  return std::abs(static_cast<double>(got) - exact) / std::ldexp(1.0, exponent - 23);
}

TEST(VectorMath, ExpIsWithinTwoUlpsOverItsWholeRange) {
  double worst = 0;
  for (int64_t i = -8733; i <= 8872; ++i) {
    for (int64_t j = 0; j < 50; ++j) {
      const float x = static_cast<float>(i) * 0.01f + static_cast<float>(j) * 2.03e-4f;
      if (x < -87.33f || x > 88.72f) continue;
      worst = std::max(worst, Ulps(ExpScalar(x), std::exp(static_cast<double>(x))));
    }
  }
  EXPECT_LT(worst, 2.0);
}

TEST(VectorMath, ExpHasItsLimits) {
  EXPECT_EQ(ExpScalar(0.0f), 1.0f);
  EXPECT_EQ(ExpScalar(-0.0f), 1.0f);
  EXPECT_EQ(ExpScalar(-kInfinity), 0.0f);
  EXPECT_EQ(ExpScalar(-88.0f), 0.0f);
  EXPECT_EQ(ExpScalar(kInfinity), kInfinity);
  EXPECT_EQ(ExpScalar(89.0f), kInfinity);
  EXPECT_TRUE(std::isfinite(ExpScalar(88.72f)));
  EXPECT_TRUE(std::isnan(ExpScalar(std::numeric_limits<float>::quiet_NaN())));
}

TEST(VectorMath, LogIsWithinTwoUlpsOfEveryExponent) {
  double worst = 0;
  for (int exponent = -126; exponent < 128; ++exponent) {
    for (int i = 0; i < 3000; ++i) {
      const float x = std::ldexp(1.0f + static_cast<float>(i) / 3000.0f, exponent);
      if (x == 1.0f) continue;
      worst = std::max(worst, Ulps(LogScalar(x), std::log(static_cast<double>(x))));
    }
  }
  EXPECT_LT(worst, 2.0);
  for (int i = 1; i < 20000; ++i) {  // next to 1, where the result is next to 0
    for (const float x : {1.0f + static_cast<float>(i) * 0x1p-23f, 1.0f - static_cast<float>(i) * 0x1p-24f}) {
      ASSERT_LT(Ulps(LogScalar(x), std::log(static_cast<double>(x))), 2.0) << x;
    }
  }
}

TEST(VectorMath, LogHasItsLimits) {
  EXPECT_EQ(LogScalar(1.0f), 0.0f);
  EXPECT_EQ(LogScalar(0.0f), -kInfinity);
  EXPECT_EQ(LogScalar(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(LogScalar(-1.0f)));
  EXPECT_TRUE(std::isnan(LogScalar(std::numeric_limits<float>::quiet_NaN())));
}

TEST(VectorMath, TailsLoadAndStoreOnlyTheirElements) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int64_t count = 1; count <= 8; ++count) {
      // Exactly `count` elements, so that the address sanitizer sees a step too far.
      std::vector<unsigned char> from(static_cast<size_t>(count) * DTypeSize(dtype)), to(from.size());
      std::vector<float> values(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = static_cast<float>(i) - 2.5f;
      ConvertFromFloat(dtype, values.data(), from.data(), values.size());
      const __m256 loaded = Load(dtype, from.data(), count);
      float lanes[8];
      _mm256_storeu_ps(lanes, loaded);
      for (int64_t i = 0; i < 8; ++i) EXPECT_EQ(lanes[i], i < count ? values[static_cast<size_t>(i)] : 0.0f);
      Store(dtype, to.data(), loaded, count);
      EXPECT_EQ(from, to);
    }
  }
}

TEST(VectorMath, ALanesBitsDependOnNothingButItsValue) {
  for (int lane = 0; lane < 8; ++lane) {
    for (const float x : {0.3f, -7.25f, 42.0f, 1e-6f}) {
      alignas(32) float lanes[8] = {-kInfinity, 88.9f, 0, -1, 3, 1e30f, -88, 5};
      lanes[lane] = x;
      alignas(32) float exps[8], logs[8];
      _mm256_store_ps(exps, Exp(_mm256_load_ps(lanes)));
      _mm256_store_ps(logs, Log(_mm256_load_ps(lanes)));
      EXPECT_EQ(exps[lane], ExpScalar(x));
      if (x > 0) {
        EXPECT_EQ(logs[lane], LogScalar(x));
      }
    }
  }
}

}  // namespace
}  // namespace lockstep::cpu
