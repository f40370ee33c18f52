#include "engine/kernels/packed_matrix.h"

#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace lockstep {
namespace {

std::vector<float> RandomValues(int64_t count) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

float Element(DType dtype, const void* base, int64_t index) {
  float value;
  ConvertToFloat(dtype, static_cast<const char*>(base) + index * static_cast<int64_t>(DTypeSize(dtype)), &value, 1);
  return value;
}

class Matrices : public testing::TestWithParam<DType> {};

TEST_P(Matrices, LieInPanelsOfSixteenOutputsWithAZeroTail) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {16, 5}, {17, 64}, {50, 131}, {96, 16}}) {
    std::vector<float> values = RandomValues(n * k);
    PackedMatrix matrix(GetParam(), n, k);
    matrix.SetRows(0, Tensor(values.data(), DType::kF32, n, k));
    ASSERT_EQ(matrix.num_panels(), (n + 15) / 16);
    for (int64_t i = 0; i < matrix.num_panels() * kPanelWidth; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        const float expected = i < n ? RoundTo(GetParam(), values[static_cast<size_t>(i * k + j)]) : 0.0f;
        ASSERT_EQ(Element(GetParam(), matrix.Panel(i / 16), j * 16 + i % 16), expected) << i << " " << j;
      }
    }
  }
}

TEST_P(Matrices, GiveBackTheRowsThatWereSetInAnyOrderAndPart) {
  constexpr int64_t kN = 53, kK = 277, kStride = 280;
  std::vector<float> values = RandomValues(kN * kStride);
  const Tensor rows(values.data(), DType::kF32, kN, kK, kStride);
  PackedMatrix matrix(GetParam(), kN, kK);
  for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{40, 13}, {0, 1}, {17, 23}, {1, 16}, {5, 0}}) {
    matrix.SetRows(begin, rows.Rows(begin, count));
  }
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    Buffer out(static_cast<size_t>(31 * kStride) * DTypeSize(dtype));
    matrix.GetRows(9, Tensor(out.data(), dtype, 31, kK, kStride));
    for (int64_t i = 0; i < 31; ++i) {
      for (int64_t j = 0; j < kK; ++j) {
        const float held = RoundTo(GetParam(), values[static_cast<size_t>((9 + i) * kStride + j)]);
        ASSERT_EQ(Element(dtype, out.data(), i * kStride + j), RoundTo(dtype, held));
      }
    }
  }
}

TEST_P(Matrices, KeepTheBitsOfRowsInTheirOwnType) {
  constexpr int64_t kN = 33, kK = 40;
  std::vector<float> values = RandomValues(kN * kK);
  const size_t bytes = values.size() * DTypeSize(GetParam());
  std::vector<char> typed(bytes), back(bytes);
  ConvertFromFloat(GetParam(), values.data(), typed.data(), values.size());
  PackedMatrix matrix(GetParam(), kN, kK);
  matrix.SetRows(0, Tensor(typed.data(), GetParam(), kN, kK));
  matrix.GetRows(0, Tensor(back.data(), GetParam(), kN, kK));
  EXPECT_EQ(typed, back);
}

INSTANTIATE_TEST_SUITE_P(All, Matrices, testing::Values(DType::kF32, DType::kF16, DType::kBF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

}  // namespace
}  // namespace lockstep
