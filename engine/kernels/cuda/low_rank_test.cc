// Gradients of low-rank updates, compiled for the CPU, against the CPU's matched operation: equal bits.
#include "engine/kernels/cuda/low_rank.h"

#include "engine/kernels/cuda/emulation_test_util.h"

namespace lockstep::cuda {
namespace {

class LowRankTest : public KernelTest {};
INSTANTIATE_TEST_SUITE_P(DTypes, LowRankTest, testing::ValuesIn(kDTypes), DTypeTestName);

// Dense, as adapters are.
struct DenseMatrix {
  std::vector<float> values;
  Tensor view;
  DenseMatrix(int64_t rows, int64_t cols, uint32_t seed)
      : values(Matrix(DType::kF32, rows, cols, seed).Read()), view(values.data(), DType::kF32, rows, cols) {}
};

struct Shape {
  int64_t tokens, rank, n, k;
};
// One of everything; ranks of no whole patch; columns of no whole vector; several blocks of tokens and of columns.
constexpr Shape kShapes[] = {{1, 1, 1, 1},     {3, 2, 9, 8},        {5, 8, 24, 17},
                             {70, 11, 40, 33}, {131, 16, 130, 259}, {0, 4, 8, 8}};

TEST_P(LowRankTest, GradientsHaveTheBitsOfTheCpuAndAreAddedTo) {
  for (const auto& [tokens, rank, n, k] : kShapes) {
    const Matrix d_out = Make(tokens, n, 1), x = Make(tokens, k, 2);
    const DenseMatrix a(rank, k, 3), b(n, rank, 4), d_a_start(rank, k, 5), d_b_start(n, rank, 6);
    DenseMatrix expected_a(rank, k, 5), expected_b(n, rank, 6);
    cpu_->LowRankBackward(d_out.view, x.view, a.view, b.view, 0.375f, expected_a.view, expected_b.view);
    InEveryOrder([&] {
      DenseMatrix d_a(rank, k, 5), d_b(n, rank, 6);
      std::vector<float> scratch(static_cast<size_t>(LowRankScratch(tokens, rank)) + 1, 77.0f);
      ASSERT_EQ(LowRankBackward(d_out.view, x.view, a.view, b.view, 0.375f, d_a.view, d_b.view, scratch.data(), {}),
                cudaSuccess);
      ExpectSameFloats(d_a.values, expected_a.values, "d_a, rank " + std::to_string(rank));
      ExpectSameFloats(d_b.values, expected_b.values, "d_b, rank " + std::to_string(rank));
      EXPECT_EQ(scratch.back(), 77.0f);
    });
    if (tokens > 0) {
      EXPECT_NE(expected_a.values, d_a_start.values);
      EXPECT_NE(expected_b.values, d_b_start.values);
    }
  }
}

TEST_P(LowRankTest, ItAgreesWithTheReference) {
  const int64_t tokens = 23, rank = 4, n = 31, k = 57;
  const Matrix d_out = Make(tokens, n, 1), x = Make(tokens, k, 2);
  const DenseMatrix a(rank, k, 3), b(n, rank, 4);
  DenseMatrix d_a(rank, k, 5), d_b(n, rank, 6), truth_a(rank, k, 5), truth_b(n, rank, 6);
  std::vector<float> scratch(static_cast<size_t>(LowRankScratch(tokens, rank)));
  reference_->LowRankBackward(d_out.view, x.view, a.view, b.view, 2.0f, truth_a.view, truth_b.view);
  ASSERT_EQ(LowRankBackward(d_out.view, x.view, a.view, b.view, 2.0f, d_a.view, d_b.view, scratch.data(), {}),
            cudaSuccess);
  ExpectClose({DType::kF32, d_a.values}, {DType::kF32, truth_a.values}, tokens + n + 16, "d_a");
  ExpectClose({DType::kF32, d_b.values}, {DType::kF32, truth_b.values}, tokens + k + 16, "d_b");
}

TEST(LowRankDeathTest, AWrongCallIsSaidSo) {
  const Matrix d_out(DType::kF16, 2, 8), x(DType::kF16, 2, 8), padded(DType::kF32, 2, 8);
  const DenseMatrix a(2, 8, 1), b(8, 2, 1);
  float scratch[8];
  EXPECT_DEATH(
      static_cast<void>(LowRankBackward(d_out.view, x.view, padded.view, b.view, 1, a.view, b.view, scratch, {})),
      "dense FP32");
  EXPECT_DEATH(
      static_cast<void>(LowRankBackward(d_out.view, padded.view, a.view, b.view, 1, a.view, b.view, scratch, {})),
      "one batch and dtype");
}

}  // namespace
}  // namespace lockstep::cuda
