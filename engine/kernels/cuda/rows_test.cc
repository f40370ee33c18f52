// Scattered rows, conversion and the inputs of the next decode step, compiled for the CPU.
#include "engine/kernels/cuda/rows.h"

#include "engine/kernels/cuda/decode_rows.h"
#include "engine/kernels/cuda/emulation_test_util.h"

namespace lockstep::cuda {
namespace {

class RowsTest : public KernelTest {};
INSTANTIATE_TEST_SUITE_P(DTypes, RowsTest, testing::ValuesIn(kDTypes), DTypeTestName);

TEST_P(RowsTest, ScatteredRowsAreCopiedAndTheOthersStay) {
  for (const int64_t cols : {1, 8, 43, 1030}) {
    const Matrix x = Make(3, cols, 1), before = Make(6, cols, 2);
    const std::vector<int32_t> rows = {5, 0, 2};
    const Matrix expected = Copy(before);
    for (size_t i = 0; i < rows.size(); ++i) {
      std::memcpy(expected.view.Row(rows[i]), x.view.Row(static_cast<int64_t>(i)),
                  static_cast<size_t>(cols) * DTypeSize(dtype()));
    }
    InEveryOrder([&] {
      const Matrix out = Copy(before);
      ASSERT_EQ(ScatterRows(x.view, rows.data(), out.view, {}), cudaSuccess);
      ExpectSameBytes(out, expected, "scattered rows");
    });
  }
}

TEST_P(RowsTest, ConversionRoundsAsTheCpuDoes) {
  for (const int64_t n : {1, 8, 1029, 5000}) {
    const std::vector<float> x = Matrix(DType::kF32, 1, n, 1, 100).Read();
    Matrix expected(dtype(), 1, n), out(dtype(), 1, n);
    expected.Write(x);
    ASSERT_EQ(Convert(x.data(), n, dtype(), out.view.data, {}), cudaSuccess);
    ExpectSameBytes(out, expected, "converted");
  }
}

TEST_P(RowsTest, ConversionFromEveryDTypeGoesThroughFloatAndBeginsAnywhere) {
  const int64_t n = 1029;
  const auto at = [](const Matrix& m, int64_t element) {
    return static_cast<char*>(m.view.Row(0)) + element * static_cast<int64_t>(DTypeSize(m.view.dtype));
  };
  for (const DType from : kDTypes) {
    for (const int64_t begin : {0, 1, 3, 8}) {
      const Matrix x(from, 1, n + begin, 4, 100), before = Make(1, n + 9, 5);
      std::vector<float> values(static_cast<size_t>(n));
      ConvertToFloat(from, at(x, begin), values.data(), values.size());
      const Matrix expected = Copy(before), out = Copy(before);
      ConvertFromFloat(dtype(), values.data(), at(expected, 8 - begin), values.size());
      ASSERT_EQ(Convert(at(x, begin), from, n, dtype(), at(out, 8 - begin), {}), cudaSuccess);
      ExpectSameBytes(out, expected, "from " + std::string(DTypeName(from)));
    }
  }
}

TEST(DecodeRowsTest, TheNextStepHasTheDrawnTokenItsPositionAndItsSlot) {
  const int64_t stride = 3;
  // Rows: inside a page; onto the next page; no next page; padded; at the last position; beyond the table.
  std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6}, positions = {4, 15, 15, 0, 39, 47}, slots = {100, 15, 15, -1, 0, 0},
                       sequence = {0, 1, 2, -1, 4, 5};
  const std::vector<int32_t> table = {7, -1, -1, 8, 2, -1, 9, -1, -1, -1, -1, -1, 1, 3, 4, 5, 6, 10};
  std::vector<SamplingRow> sampling(6);
  for (SamplingRow& row : sampling) row.token_index = 10;
  const std::vector<int32_t> sampled = {11, 12, 13, 14, 15, 16};
  const DecodeRows rows = {tokens.data(),   positions.data(), slots.data(), sequence.data(),
                           sampling.data(), table.data(),     stride,       40};
  ASSERT_EQ(AdvanceRows(rows, 6, sampled.data(), {}), cudaSuccess);
  EXPECT_EQ(tokens, (std::vector<int32_t>{11, 12, 3, 4, 5, 6}));
  EXPECT_EQ(positions, (std::vector<int32_t>{5, 16, 15, 0, 39, 47}));
  EXPECT_EQ(slots, (std::vector<int32_t>{7 * 16 + 5, 2 * 16, -1, -1, -1, -1}));
  EXPECT_EQ(sequence, (std::vector<int32_t>{0, 1, -1, -1, -1, -1}));
  EXPECT_EQ(sampling[0].token_index, 11u);
  EXPECT_EQ(sampling[2].token_index, 10u);
}

TEST(DecodeRowsTest, ANewBatchTakesTokensThatOnlyTheDeviceKnows) {
  const std::vector<int32_t> from = {2, -1, 0}, given = {0, 77, 0}, sampled = {5, 6, 7};
  std::vector<int32_t> tokens(3);
  ASSERT_EQ(TakeTokens(from.data(), given.data(), sampled.data(), 3, tokens.data(), {}), cudaSuccess);
  EXPECT_EQ(tokens, (std::vector<int32_t>{7, 77, 5}));
}

}  // namespace
}  // namespace lockstep::cuda
