// Embedding and RMSNorm, compiled for the CPU, against the CPU's matched operations: equal bits.
#include "engine/kernels/cuda/emulation_test_util.h"

namespace lockstep::cuda {
namespace {

class NormTest : public KernelTest {};
INSTANTIATE_TEST_SUITE_P(DTypes, NormTest, testing::ValuesIn(kDTypes), DTypeTestName);

// One row, no whole vector, a warp's share, more than one tile of shared memory.
constexpr int64_t kCols[] = {1, 7, 24, 100, 256, 300, 2048, 2051, 4099};

TEST_P(NormTest, EmbeddingGathersRowsAndItsBackwardSumsThemInOrder) {
  for (const int64_t tokens : {1, 2, 19, 70}) {
    for (const int64_t d : {1, 8, 42, 260}) {
      const int64_t vocabulary = 23;
      const Matrix table = Make(vocabulary, d, 1), d_out = Make(tokens, d, 2);
      const std::vector<int32_t> ids = RandomIds(tokens, vocabulary, 3);
      Matrix expected(dtype(), tokens, d), expected_gradient(DType::kF32, vocabulary, d, 4);
      const Matrix start = Copy(expected_gradient);
      cpu_->Embedding(ids, lockstep::Pack(table), expected.view);
      cpu_->EmbeddingBackward(ids, d_out.view, expected_gradient.view);
      InEveryOrder([&] {
        const Matrix out(dtype(), tokens, d), gradient = Copy(start);
        const EmbeddingRuns runs = PlanEmbeddingRuns(ids);
        ASSERT_EQ(Embedding(ids.data(), tokens, table.view, out.view, {}), cudaSuccess);
        ASSERT_EQ(EmbeddingBackward(ids.data(), runs.order.data(), runs.begin.data(),
                                    static_cast<int64_t>(runs.begin.size()) - 1, d_out.view, gradient.view, {}),
                  cudaSuccess);
        ExpectSameBytes(out, expected, "embedding");
        ExpectSameBytes(gradient, expected_gradient, "embedding's gradient");
      });
    }
  }
}

TEST_P(NormTest, RmsNormHasTheBitsOfTheCpu) {
  for (const int64_t rows : {1, 3}) {
    for (const int64_t d : kCols) {
      for (const int64_t groups : {1, 3}) {
        const Matrix x = Make(rows, d * groups, 1), weight = Make(1, d, 2);
        const Matrix expected(dtype(), rows, d * groups);
        std::vector<float> expected_rstd(static_cast<size_t>(rows * groups));
        cpu_->RmsNorm(x.view, weight.view, 1e-6f, expected.view, expected_rstd.data());
        InEveryOrder([&] {
          const Matrix out(dtype(), rows, d * groups), in_place = Copy(x);
          std::vector<float> rstd(expected_rstd.size());
          ASSERT_EQ(RmsNorm(x.view, {}, weight.view, 1e-6f, {}, out.view, rstd.data(), {}), cudaSuccess);
          ASSERT_EQ(RmsNorm(in_place.view, {}, weight.view, 1e-6f, {}, in_place.view, nullptr, {}), cudaSuccess);
          ExpectSameBytes(out, expected, "norm of " + std::to_string(d));
          ExpectSameFloats(rstd, expected_rstd, "rstd of " + std::to_string(d));
          ASSERT_EQ(in_place.Read(), expected.Read());
        });
      }
    }
  }
}

TEST_P(NormTest, TheResidualIsRoundedBeforeItIsNormed) {
  for (const int64_t d : kCols) {
    const int64_t rows = 3;
    const Matrix x = Make(rows, d, 1), delta = Make(rows, d, 2), weight = Make(1, d, 3);
    Matrix expected_sum(dtype(), rows, d);
    std::vector<float> sums = x.Read(), deltas = delta.Read();
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += deltas[i];
    expected_sum.Write(sums);
    const Matrix expected(dtype(), rows, d);
    cpu_->RmsNorm(expected_sum.view, weight.view, 1e-5f, expected.view, nullptr);
    InEveryOrder([&] {
      const Matrix residual = Copy(x), out(dtype(), rows, d);
      ASSERT_EQ(RmsNorm(residual.view, delta.view, weight.view, 1e-5f, residual.view, out.view, nullptr, {}),
                cudaSuccess);
      EXPECT_EQ(residual.Read(), expected_sum.Read());
      ExpectSameBytes(out, expected, "norm of a sum, " + std::to_string(d));
    });
  }
}

TEST_P(NormTest, RmsNormBackwardHasTheBitsOfTheCpu) {
  for (const int64_t rows : {1, 5, 130}) {
    for (const int64_t d : {1, 24, 100, 300, 2051}) {
      if (rows == 130 && d > 100) continue;
      for (const int64_t groups : {1, 2}) {
        const int64_t cols = d * groups;
        const Matrix x = Make(rows, cols, 1), weight = Make(1, d, 2), d_out = Make(rows, cols, 3),
                     residual = Make(rows, cols, 4);
        std::vector<float> rstd(static_cast<size_t>(rows * groups));
        const Matrix unused(dtype(), rows, cols), expected(dtype(), rows, cols), expected_weight(DType::kF32, 1, d, 5);
        const Matrix start = Copy(expected_weight);
        cpu_->RmsNorm(x.view, weight.view, 1e-6f, unused.view, rstd.data());
        cpu_->RmsNormBackward(d_out.view, x.view, weight.view, rstd.data(), residual.view, expected.view,
                              expected_weight.view);
        InEveryOrder([&] {
          const Matrix d_x = Copy(d_out), d_weight = Copy(start);  // in place of d_out
          std::vector<float> scratch(static_cast<size_t>(RmsNormBackwardScratch(rows, d)));
          ASSERT_EQ(RmsNormBackward(d_x.view, x.view, weight.view, rstd.data(), residual.view, d_x.view, d_weight.view,
                                    scratch.data(), {}),
                    cudaSuccess);
          ASSERT_EQ(d_x.Read(), expected.Read()) << rows << " rows of " << cols;
          ExpectSameBytes(d_weight, expected_weight, "weight's gradient, " + std::to_string(d));
        });
      }
    }
  }
}

TEST_P(NormTest, WithoutResidualAndWeightItAgreesWithTheReference) {
  const int64_t rows = 4, d = 77;
  const Matrix x = Make(rows, d, 1), weight = Make(1, d, 2), d_out = Make(rows, d, 3);
  const Matrix out(dtype(), rows, d), d_x(dtype(), rows, d), truth(dtype(), rows, d), d_truth(dtype(), rows, d);
  std::vector<float> rstd(rows);
  reference_->RmsNorm(x.view, weight.view, 1e-6f, truth.view, rstd.data());
  ASSERT_EQ(RmsNorm(x.view, {}, weight.view, 1e-6f, {}, out.view, nullptr, {}), cudaSuccess);
  reference_->RmsNormBackward(d_out.view, x.view, weight.view, rstd.data(), {}, d_truth.view, {});
  ASSERT_EQ(RmsNormBackward(d_out.view, x.view, weight.view, rstd.data(), {}, d_x.view, {}, nullptr, {}), cudaSuccess);
  ExpectClose({dtype(), out.Read()}, {dtype(), truth.Read()}, d + 8, "norm");
  ExpectClose({dtype(), d_x.Read()}, {dtype(), d_truth.Read()}, 2 * d + 8, "gradient");
}

TEST(NormDeathTest, AWrongCallIsSaidSo) {
  const Matrix x(DType::kF16, 2, 24), weight(DType::kF16, 1, 10), out(DType::kF16, 2, 24);
  EXPECT_DEATH(static_cast<void>(RmsNorm(x.view, {}, weight.view, 1e-6f, {}, out.view, nullptr, {})), "whole groups");
}

}  // namespace
}  // namespace lockstep::cuda
