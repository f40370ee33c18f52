// The linear layer against plain loops that read like the contract in ops.h: in matched mode one chain of std::fma, and
// the comparison is ==.
#include "engine/kernels/cpu/linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/kernels/cpu/context.h"
#include "gtest/gtest.h"

namespace lockstep::cpu {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// A matrix of `dtype` with row padding, and the same values in FP32.
struct Matrix {
  Matrix(DType dtype, int64_t rows, int64_t cols, uint32_t seed, float sigma = 1.0f, int64_t padding = 3)
      : buffer(static_cast<size_t>(std::max<int64_t>(1, rows * (cols + padding))) * DTypeSize(dtype)),
        view(buffer.data(), dtype, rows, cols, cols + padding),
        values(static_cast<size_t>(rows * cols)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, sigma);
    for (float& value : values) value = RoundTo(dtype, normal(random));
    for (int64_t r = 0; r < rows; ++r) ConvertFromFloat(dtype, values.data() + r * cols, view.Row(r), cols);
  }
  std::vector<float> Read() const {
    std::vector<float> out(values.size());
    for (int64_t r = 0; r < view.rows; ++r)
      ConvertToFloat(view.dtype, view.Row(r), out.data() + r * view.cols, view.cols);
    return out;
  }
  float operator()(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * view.cols + c)]; }

  Buffer buffer;
  Tensor view;
  std::vector<float> values;
};

PackedMatrix Pack(const Matrix& w) {
  PackedMatrix packed(w.view.dtype, w.view.rows, w.view.cols);
  packed.SetRows(0, w.view);
  return packed;
}

float Chain(const Matrix& x, int64_t row, const Matrix& w, int64_t n) {
  float sum = 0;
  for (int64_t k = 0; k < x.view.cols; ++k) sum = std::fma(x(row, k), w(n, k), sum);
  return sum;
}

// Rounding errors of any summation order: k fma's and the same of the reference (Higham, section 3.1).
double DotBound(double sum_of_magnitudes, int64_t k) {
  return 2.0 * static_cast<double>(k + 2) * 0x1p-24 * sum_of_magnitudes;
}

double StoreBound(DType dtype, double value) {
  if (dtype == DType::kF32) return std::abs(value) * 0x1p-23;
  return dtype == DType::kF16 ? std::abs(value) * 0x1p-10 + 0x1p-24 : std::abs(value) * 0x1p-7;
}

TEST(Linear, MatchedForwardIsOneAscendingFmaChainWithTheRoundingOfTheContract) {
  for (const DType dtype : kTypes) {
    for (const int threads : {1, 2, 3}) {
      CpuContext context(Numerics::kMatched, threads);
      for (const int64_t m : {0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 31}) {
        for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {16, 16}, {70, 37}, {129, 515}, {33, 0}}) {
          const Matrix x(dtype, m, k, 1), w(dtype, n, k, 2, 0.1f), bias(dtype, 1, n, 3), residual(dtype, m, n, 4);
          const PackedMatrix packed = Pack(w);
          for (int variant = 0; variant < 4; ++variant) {
            const bool with_bias = (variant & 1) != 0, with_residual = (variant & 2) != 0;
            const Matrix out(dtype, m, n, 5);
            Linear(context, x.view, packed, with_bias ? bias.view : Tensor(), with_residual ? residual.view : Tensor(),
                   out.view);
            const std::vector<float> got = out.Read();
            for (int64_t r = 0; r < m; ++r) {
              for (int64_t c = 0; c < n; ++c) {
                float expected = Chain(x, r, w, c);
                if (with_bias) expected += bias(0, c);
                expected = RoundTo(dtype, expected);
                if (with_residual) expected = RoundTo(dtype, residual(r, c) + expected);
                ASSERT_EQ(got[r * n + c], expected)
                    << DTypeName(dtype) << " m " << m << " n " << n << " k " << k << " at " << r << "," << c;
              }
            }
          }
        }
      }
    }
  }
}

TEST(Linear, MatchedChainsGoThroughEveryBlockBoundary) {
  // More than one block of k (512), of panels (16) and of rows (1,026); FP32 out has no rounding.
  constexpr int64_t kM = 1100, kN = 300, kK = 1100;
  const Matrix x(DType::kF16, kM, kK, 1), w(DType::kF16, kN, kK, 2);
  const PackedMatrix packed = Pack(w);
  for (const int threads : {1, 2, 3}) {
    CpuContext context(Numerics::kMatched, threads);
    const Matrix out(DType::kF32, kM, kN, 5);
    Linear(context, x.view, packed, Tensor(), Tensor(), out.view);
    const std::vector<float> got = out.Read();
    for (int64_t r = 0; r < kM; r += 13) {
      for (int64_t c = r % 7; c < kN; c += 7) ASSERT_EQ(got[r * kN + c], Chain(x, r, w, c)) << r << "," << c;
    }
  }
}

TEST(Linear, MatchedRowBitsDependOnNeitherBatchNorPositionNorThreads) {
  constexpr int64_t kM = 257, kN = 71, kK = 1031;
  for (const DType dtype : kTypes) {
    const Matrix x(dtype, kM, kK, 1), w(dtype, kN, kK, 2, 0.05f), bias(dtype, 1, kN, 3);
    const PackedMatrix packed = Pack(w);
    CpuContext single(Numerics::kMatched, 1);
    const Matrix all(dtype, kM, kN, 4);
    Linear(single, x.view, packed, bias.view, Tensor(), all.view);
    const std::vector<float> expected = all.Read();
    for (const int threads : {1, 2, 3}) {
      CpuContext context(Numerics::kMatched, threads);
      for (int64_t m = 1; m <= 65; ++m) {
        const int64_t count = m == 65 ? kM : m;
        const int64_t begin = m == 65 ? 0 : (m * 37) % (kM - m);
        const Matrix out(dtype, count, kN, 5);
        Linear(context, x.view.Rows(begin, count), packed, bias.view, Tensor(), out.view);
        const std::vector<float> got = out.Read();
        for (int64_t i = 0; i < count * kN; ++i) {
          ASSERT_EQ(got[i], expected[begin * kN + i]) << "rows " << begin << " + " << count << ", element " << i;
        }
      }
    }
  }
}

TEST(Linear, ResidualMayBeTheOutput) {
  CpuContext context(Numerics::kMatched, 2);
  const Matrix x(DType::kF16, 9, 40, 1), w(DType::kF16, 50, 40, 2), residual(DType::kF16, 9, 50, 3);
  const PackedMatrix packed = Pack(w);
  const Matrix out(DType::kF16, 9, 50, 4), in_place(DType::kF16, 9, 50, 3);
  Linear(context, x.view, packed, Tensor(), residual.view, out.view);
  Linear(context, x.view, packed, Tensor(), in_place.view, in_place.view);
  EXPECT_EQ(out.Read(), in_place.Read());
}

TEST(Linear, PanelsGiveTheBitsOfTheWholeProduct) {
  for (const Numerics numerics : {Numerics::kMatched, Numerics::kNative}) {
    CpuContext context(numerics, 2);
    constexpr int64_t kM = 5, kN = 90, kK = 300;
    const Matrix x(DType::kF16, kM, kK, 1), w(DType::kF16, kN, kK, 2);
    const PackedMatrix packed = Pack(w);
    const Matrix whole(DType::kF32, kM, kN, 3), part(DType::kF32, kM, 48, 4);
    Linear(context, x.view, packed, Tensor(), Tensor(), whole.view);
    LinearPanels(context, x.view, packed, 3, 3, part.view);
    const std::vector<float> expected = whole.Read(), got = part.Read();
    for (int64_t r = 0; r < kM; ++r) {
      for (int64_t c = 48; c < kN; ++c) ASSERT_EQ(got[r * 48 + c - 48], expected[r * kN + c]);
      for (int64_t c = kN; c < 96; ++c) ASSERT_EQ(got[r * 48 + c - 48], 0.0f);
    }
  }
}

TEST(Linear, NativeIsAnotherOrderBeyondSixteenRowsWithinTheDotBoundAndTheSameForAnyThreads) {
  for (const DType dtype : kTypes) {
    for (const int64_t m : {1, 3, 6, 16, 17, 40}) {
      constexpr int64_t kN = 75, kK = 1201;
      const Matrix x(dtype, m, kK, 1), w(dtype, kN, kK, 2);
      const PackedMatrix packed = Pack(w);
      std::vector<float> first;
      for (const int threads : {1, 2, 3}) {
        CpuContext context(Numerics::kNative, threads);
        const Matrix out(DType::kF32, m, kN, 3);
        Linear(context, x.view, packed, Tensor(), Tensor(), out.view);
        if (threads == 1) first = out.Read();
        ASSERT_EQ(out.Read(), first);
      }
      int64_t different = 0;
      for (int64_t r = 0; r < m; ++r) {
        for (int64_t c = 0; c < kN; ++c) {
          double exact = 0, magnitudes = 0;
          for (int64_t k = 0; k < kK; ++k) {
            exact += static_cast<double>(x(r, k)) * w(c, k);
            magnitudes += std::abs(static_cast<double>(x(r, k)) * w(c, k));
          }
          ASSERT_NEAR(first[r * kN + c], exact, DotBound(magnitudes, kK));
          if (first[r * kN + c] != Chain(x, r, w, c)) ++different;
        }
      }
      EXPECT_EQ(different > 0, m > 16) << m << " rows: " << different << " outputs are not one chain";
    }
  }
}

TEST(LinearBackwardInput, MatchedIsOneChainOverAscendingOutputs) {
  for (const DType dtype : kTypes) {
    for (const int threads : {1, 2, 3}) {
      CpuContext context(Numerics::kMatched, threads);
      for (const int64_t m : {0, 1, 2, 5, 6, 17}) {
        for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {16, 16}, {37, 70}, {530, 45}, {15, 300}}) {
          const Matrix d_out(dtype, m, n, 1), w(dtype, n, k, 2);
          const PackedMatrix packed = Pack(w);
          for (const bool accumulate : {false, true}) {
            const Matrix d_x(dtype, m, k, 3);
            LinearBackwardInput(context, d_out.view, packed, d_x.view, accumulate);
            const std::vector<float> got = d_x.Read();
            for (int64_t r = 0; r < m; ++r) {
              for (int64_t c = 0; c < k; ++c) {
                float sum = 0;
                for (int64_t i = 0; i < n; ++i) sum = std::fma(d_out(r, i), w(i, c), sum);
                const float expected = RoundTo(dtype, accumulate ? d_x(r, c) + sum : sum);
                ASSERT_EQ(got[r * k + c], expected) << "m " << m << " n " << n << " k " << k;
              }
            }
          }
        }
      }
    }
  }
}

TEST(LinearBackwardInput, RowsOfTheWeightGiveTheirPartOfTheProduct) {
  CpuContext context(Numerics::kMatched, 2);
  constexpr int64_t kM = 7, kN = 75, kK = 50;
  const Matrix d_out(DType::kF16, kM, kN, 1), w(DType::kF16, kN, kK, 2), d_x(DType::kF32, kM, kK, 3);
  LinearBackwardInputRows(context, d_out.view.Cols(32, 43), Pack(w), 32, d_x.view, /*accumulate=*/false);
  const std::vector<float> got = d_x.Read();
  for (int64_t r = 0; r < kM; ++r) {
    for (int64_t c = 0; c < kK; ++c) {
      float sum = 0;
      for (int64_t i = 32; i < kN; ++i) sum = std::fma(d_out(r, i), w(i, c), sum);
      ASSERT_EQ(got[r * kK + c], sum);
    }
  }
}

TEST(LinearBackwardInput, NativeStaysWithinTheDotBound) {
  CpuContext context(Numerics::kNative, 2);
  constexpr int64_t kM = 20, kN = 1100, kK = 90;
  for (const DType dtype : kTypes) {
    const Matrix d_out(dtype, kM, kN, 1), w(dtype, kN, kK, 2), d_x(dtype, kM, kK, 3);
    LinearBackwardInput(context, d_out.view, Pack(w), d_x.view, /*accumulate=*/false);
    const std::vector<float> got = d_x.Read();
    for (int64_t r = 0; r < kM; ++r) {
      for (int64_t c = 0; c < kK; ++c) {
        double exact = 0, magnitudes = 0;
        for (int64_t i = 0; i < kN; ++i) {
          exact += static_cast<double>(d_out(r, i)) * w(i, c);
          magnitudes += std::abs(static_cast<double>(d_out(r, i)) * w(i, c));
        }
        ASSERT_NEAR(got[r * kK + c], exact, DotBound(magnitudes, kN) + StoreBound(dtype, exact));
      }
    }
  }
}

TEST(LinearBackwardWeight, AddsTheTokenSumsWithinTheDotBoundAndTheSameForAnyThreads) {
  for (const DType dtype : kTypes) {
    for (const Numerics numerics : {Numerics::kMatched, Numerics::kNative}) {
      for (const auto& [t, n, k] :
           {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {5, 17, 20}, {33, 100, 47}, {1100, 40, 300}, {9, 13, 16}}) {
        const Matrix d_out(dtype, t, n, 1), x(dtype, t, k, 2);
        std::vector<float> first_w, first_bias;
        for (const int threads : {1, 2, 3}) {
          CpuContext context(numerics, threads);
          const Matrix d_w(DType::kF32, n, k, 3), d_bias(DType::kF32, 1, n, 4);
          LinearBackwardWeight(context, d_out.view, x.view, d_w.view, d_bias.view);
          if (threads > 1) {
            ASSERT_EQ(d_w.Read(), first_w);
            ASSERT_EQ(d_bias.Read(), first_bias);
            continue;
          }
          first_w = d_w.Read();
          first_bias = d_bias.Read();
          for (int64_t i = 0; i < n; ++i) {
            double bias = d_bias(0, i), bias_magnitudes = std::abs(bias);
            for (int64_t r = 0; r < t; ++r) {
              bias += d_out(r, i);
              bias_magnitudes += std::abs(static_cast<double>(d_out(r, i)));
            }
            ASSERT_NEAR(first_bias[i], bias, DotBound(bias_magnitudes, t));
            for (int64_t j = 0; j < k; ++j) {
              double exact = d_w(i, j), magnitudes = std::abs(exact);
              for (int64_t r = 0; r < t; ++r) {
                exact += static_cast<double>(d_out(r, i)) * x(r, j);
                magnitudes += std::abs(static_cast<double>(d_out(r, i)) * x(r, j));
              }
              ASSERT_NEAR(first_w[i * k + j], exact, DotBound(magnitudes, t)) << i << "," << j;
            }
          }
        }
      }
    }
  }
}

TEST(LinearBackwardWeight, NoTokensAndNoBiasChangeNothing) {
  CpuContext context(Numerics::kMatched, 2);
  const Matrix d_out(DType::kF16, 0, 20, 1), x(DType::kF16, 0, 30, 2), d_w(DType::kF32, 20, 30, 3);
  LinearBackwardWeight(context, d_out.view, x.view, d_w.view, Tensor());
  EXPECT_EQ(d_w.Read(), d_w.values);
}

TEST(Linear, GradientsAreThoseOfTheForwardByCentralDifferences) {
  // loss = sum(c * (x W^T + b)); FP32, where the product is linear, so the difference quotient has rounding error only.
  CpuContext context(Numerics::kMatched, 2);
  constexpr int64_t kM = 3, kN = 19, kK = 21;
  const Matrix c(DType::kF32, kM, kN, 1), x(DType::kF32, kM, kK, 2), w(DType::kF32, kN, kK, 3),
      b(DType::kF32, 1, kN, 4);
  const auto loss = [&](const Matrix& xs, const Matrix& ws) {
    const Matrix y(DType::kF32, kM, kN, 5);
    Linear(context, xs.view, Pack(ws), b.view, Tensor(), y.view);
    double sum = 0;
    const std::vector<float> values = y.Read();
    for (size_t i = 0; i < values.size(); ++i) sum += static_cast<double>(values[i]) * c.values[i];
    return sum;
  };
  Matrix d_x(DType::kF32, kM, kK, 6), d_w(DType::kF32, kN, kK, 7);
  LinearBackwardInput(context, c.view, Pack(w), d_x.view, /*accumulate=*/false);
  LinearBackwardWeight(context, c.view, x.view, d_w.view, Tensor());
  const std::vector<float> got_x = d_x.Read(), got_w = d_w.Read();
  constexpr float kStep = 0.25f;
  for (int64_t i = 0; i < kM * kK; i += 5) {
    const Matrix up(DType::kF32, kM, kK, 2), down(DType::kF32, kM, kK, 2);
    static_cast<float*>(up.view.Row(i / kK))[i % kK] += kStep;
    static_cast<float*>(down.view.Row(i / kK))[i % kK] -= kStep;
    EXPECT_NEAR((loss(up, w) - loss(down, w)) / (2 * kStep), got_x[i], 1e-3);
  }
  for (int64_t i = 0; i < kN * kK; i += 17) {
    const Matrix up(DType::kF32, kN, kK, 3), down(DType::kF32, kN, kK, 3);
    static_cast<float*>(up.view.Row(i / kK))[i % kK] += kStep;
    static_cast<float*>(down.view.Row(i / kK))[i % kK] -= kStep;
    EXPECT_NEAR((loss(x, up) - loss(x, down)) / (2 * kStep), got_w[i] - d_w.values[i], 1e-3);
  }
}

}  // namespace
}  // namespace lockstep::cpu
