#include "engine/tensor/dtype.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace lockstep {
namespace {

// A 16-bit format written from its definition (IEEE 754, section 3.4), with arithmetic in double.
struct Format {
  DType dtype;
  int mantissa_bits;
  int bias;
  int max_exponent_field;
};
constexpr Format kHalf = {DType::kF16, 10, 15, 31};
constexpr Format kBrain = {DType::kBF16, 7, 127, 255};

double Decode(const Format& format, uint16_t bits) {
  const int exponent = (bits & 0x7FFF) >> format.mantissa_bits;
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == format.max_exponent_field) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - format.bias - format.mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << format.mantissa_bits), exponent - format.bias - format.mantissa_bits);
}

// Nearest value of the format, ties to even, by rounding to a multiple of the quantum at the value's magnitude.
double RoundByQuantum(const Format& format, double value) {
  if (std::isnan(value) || std::isinf(value) || value == 0) return value;
  const int exponent = std::max(std::ilogb(value), 1 - format.bias);
  const double quantum = std::ldexp(1.0, exponent - format.mantissa_bits);
  const double rounded = std::nearbyint(value / quantum) * quantum;
  const double limit = std::ldexp(1.0, format.max_exponent_field - format.bias);
  return std::abs(rounded) >= limit ? std::copysign(std::numeric_limits<double>::infinity(), value) : rounded;
}

uint16_t Narrow(const Format& format, float value) {
  return format.dtype == DType::kF16 ? FloatToHalf(value) : FloatToBFloat16(value);
}

float Widen(const Format& format, uint16_t bits) {
  return format.dtype == DType::kF16 ? HalfToFloat(bits) : BFloat16ToFloat(bits);
}

void ExpectRounds(const Format& format, float value) {
  const uint16_t bits = Narrow(format, value);
  const double expected = RoundByQuantum(format, value);
  if (std::isnan(value)) {
    ASSERT_TRUE(std::isnan(Decode(format, bits))) << value;
    return;
  }
  ASSERT_EQ(Decode(format, bits), expected) << std::hexfloat << value;
  ASSERT_EQ((bits & 0x8000) != 0, std::signbit(value)) << std::hexfloat << value;
}

class Formats : public testing::TestWithParam<Format> {};

TEST_P(Formats, WidensEveryBitPatternExactly) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = Widen(GetParam(), static_cast<uint16_t>(bits));
    const double expected = Decode(GetParam(), static_cast<uint16_t>(bits));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(value), expected) << bits;
      ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << bits;
      ASSERT_EQ(Narrow(GetParam(), value), bits);
    }
  }
}

TEST_P(Formats, RoundsEveryTieAndItsNeighboursToNearestEven) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (uint32_t bits = 0; bits + 1 < 0x8000; ++bits) {
    const double low = Decode(GetParam(), static_cast<uint16_t>(bits));
    if (!std::isfinite(low)) break;
    double high = Decode(GetParam(), static_cast<uint16_t>(bits + 1));
    if (std::isinf(high)) high = std::ldexp(1.0, GetParam().max_exponent_field - GetParam().bias);
    const double middle = (low + high) / 2;
    const float tie = static_cast<float>(middle);
    if (static_cast<double>(tie) != middle) continue;  // beyond FP32: bf16's smallest subnormals
    for (const float value : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, kInfinity)}) {
      ExpectRounds(GetParam(), value);
      ExpectRounds(GetParam(), -value);
    }
  }
}

TEST_P(Formats, RoundsLimitsInfinitiesAndNaN) {
  using Limits = std::numeric_limits<float>;
  for (const float value : {0.0f, Limits::denorm_min(), Limits::min(), Limits::max(), Limits::infinity(),
                            Limits::quiet_NaN(), 65504.0f, 65519.99f, 65520.0f, 0x1p-24f, 0x1p-25f, 0x1.8p-25f}) {
    ExpectRounds(GetParam(), value);
    ExpectRounds(GetParam(), -value);
  }
  // A NaN whose payload lies only in the bits that are cut off must not become infinity.
  const uint16_t bits = Narrow(GetParam(), std::bit_cast<float>(0x7F800001u));
  EXPECT_TRUE(std::isnan(Decode(GetParam(), bits)));
}

TEST_P(Formats, VectorNarrowingHasTheBitsOfTheScalarOneForAnyLengthAndPattern) {
  std::mt19937 random(7);
  for (const size_t n : {size_t{1}, size_t{7}, size_t{8}, size_t{9}, size_t{31}, size_t{1 << 20}}) {
    std::vector<float> source(n);
    for (float& value : source) value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    std::vector<uint16_t> vector(n), scalar(n);
    ConvertFromFloat(GetParam().dtype, source.data(), vector.data(), n);
    for (size_t i = 0; i < n; ++i) scalar[i] = Narrow(GetParam(), source[i]);
    ASSERT_EQ(vector, scalar);
  }
}

TEST_P(Formats, VectorNarrowingHasTheBitsOfTheScalarOneInTheRangeOfWeightsAndSubnormals) {
  std::mt19937 random(11);
  std::vector<float> source(1 << 20);
  for (float& value : source)
    value = std::ldexp(static_cast<float>(random()) - 0x1p31f, -31 - static_cast<int>(random() % 30));
  std::vector<uint16_t> vector(source.size());
  ConvertFromFloat(GetParam().dtype, source.data(), vector.data(), source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    ASSERT_EQ(vector[i], Narrow(GetParam(), source[i])) << std::hexfloat << source[i];
    ExpectRounds(GetParam(), source[i]);
  }
}

TEST_P(Formats, VectorWideningHasTheBitsOfTheScalarOne) {
  std::vector<uint16_t> source(0x10000);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint16_t>(i);
  std::vector<float> vector(source.size());
  ConvertToFloat(GetParam().dtype, source.data(), vector.data(), source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(vector[i]), std::bit_cast<uint32_t>(Widen(GetParam(), source[i]))) << i;
  }
}

TEST_P(Formats, RoundToIsNarrowingAndWidening) {
  for (const float value : {1.0009765f, -3.14159274f, 1e-7f, 1e5f}) {
    EXPECT_EQ(RoundTo(GetParam().dtype, value), Widen(GetParam(), Narrow(GetParam(), value)));
  }
}

INSTANTIATE_TEST_SUITE_P(All, Formats, testing::Values(kHalf, kBrain),
                         [](const auto& info) { return std::string(DTypeName(info.param.dtype)); });

TEST(DType, NamesAreParsedAndUnknownOnesNamed) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const auto parsed = ParseDType(DTypeName(dtype));
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(*parsed, dtype);
  }
  const auto unknown = ParseDType("fp8");
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(std::string(unknown.status().message()).find("fp8"), std::string::npos);
}

TEST(DType, Fp32IsCopied) {
  const float source[3] = {1.5f, std::bit_cast<float>(0x7F800001u), -0.0f};
  uint32_t out[3];
  ConvertFromFloat(DType::kF32, source, out, 3);
  EXPECT_EQ(out[0], 0x3FC00000u);
  EXPECT_EQ(out[1], 0x7F800001u);
  EXPECT_EQ(out[2], 0x80000000u);
}

}  // namespace
}  // namespace lockstep
