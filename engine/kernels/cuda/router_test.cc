// The router, compiled for the CPU, against the CPU's matched operations: the same experts, equal bits.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "engine/kernels/cuda/emulation_test_util.h"
#include "engine/kernels/cuda/moe.h"

namespace lockstep::cuda {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

// N and K: one expert, all of them, less than a warp, no whole warp, more chosen than a warp has threads.
constexpr std::pair<int64_t, int64_t> kShapes[] = {{1, 1},  {4, 2},  {9, 9},   {32, 32},
                                                   {33, 5}, {60, 4}, {70, 40}, {128, 8}};

class RouterTest : public testing::TestWithParam<bool> {
 protected:
  RouterTest() : cpu_(MakeCpuOps(Numerics::kMatched, 1)) {}
  bool normalize() const { return GetParam(); }

  // Both choices, weights and gradients from these logits.
  void ExpectTheSame(const Matrix& logits, int64_t k, const std::string& where);

  std::unique_ptr<Ops> cpu_;
};
INSTANTIATE_TEST_SUITE_P(Normalized, RouterTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Chosen" : "All"; });

// Equal bits, or both NaN: which NaN is nobody's promise.
void ExpectSameOrNaN(const std::vector<float>& got, const std::vector<float>& expected, const std::string& where) {
  ASSERT_EQ(got.size(), expected.size()) << where;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(expected[i])) {
      ASSERT_TRUE(std::isnan(got[i])) << where << " element " << i << ": " << got[i];
    } else {
      ASSERT_EQ(std::memcmp(&got[i], &expected[i], sizeof(float)), 0)
          << where << " element " << i << ": " << got[i] << " and " << expected[i];
    }
  }
}

// The padding of a matrix that was zero before has stayed so.
void ExpectPaddingIsZero(const Matrix& m, const std::string& where) {
  for (int64_t t = 0; t < m.view.rows; ++t) {
    const float* row = static_cast<const float*>(m.view.Row(t));
    for (int64_t c = m.view.cols; c < m.view.stride; ++c) ASSERT_EQ(row[c], 0) << where;
  }
}

void RouterTest::ExpectTheSame(const Matrix& logits, int64_t k, const std::string& where) {
  const int64_t t = logits.view.rows, n = logits.view.cols;
  const auto pairs = static_cast<size_t>(t * k);
  std::vector<int32_t> experts(pairs);
  std::vector<float> weights(pairs), products(pairs);
  std::mt19937 random(5);
  for (float& product : products) product = std::normal_distribution<float>()(random);
  const Matrix gradient(DType::kF32, t, n);
  cpu_->RouteTopK(logits.view, k, normalize(), experts.data(), weights.data());
  cpu_->RouteTopKBackward(logits.view, experts, normalize(), products.data(), gradient.view);
  InEveryOrder([&] {
    std::vector<int32_t> chosen(pairs + 1, -7);
    std::vector<float> device(pairs + 1, 7), given(pairs);
    const Matrix d_logits(DType::kF32, t, n);
    ASSERT_EQ(RouteTopK(logits.view, k, normalize(), chosen.data(), device.data(), {}), cudaSuccess);
    ASSERT_EQ(chosen.back(), -7);
    ASSERT_EQ(device.back(), 7);
    chosen.pop_back();
    device.pop_back();
    ASSERT_EQ(chosen, experts) << where;
    ExpectSameOrNaN(device, weights, where + " weights");
    ASSERT_EQ(RouteGiven(logits.view, experts.data(), k, normalize(), given.data(), {}), cudaSuccess);
    ExpectSameOrNaN(given, weights, where + " weights of the same experts, given");
    ASSERT_EQ(RouteTopKBackward(logits.view, experts.data(), k, normalize(), products.data(), d_logits.view, {}),
              cudaSuccess);
    ExpectSameOrNaN(d_logits.Read(), gradient.Read(), where + " gradient");
    ExpectPaddingIsZero(d_logits, where);
  });
}

TEST_P(RouterTest, ChoiceWeightsAndGradientAreTheCpus) {
  for (const int64_t t : {1, 5}) {
    for (const auto& [n, k] : kShapes) {
      for (const float sigma : {1.0f, 60.0f}) {
        ExpectTheSame(Matrix(DType::kF32, t, n, 1, sigma), k,
                      std::to_string(t) + " tokens, " + std::to_string(k) + " of " + std::to_string(n));
      }
    }
  }
}

TEST_P(RouterTest, EqualLogitsZerosInfinitiesAndNaNAreRankedAsOnTheCpu) {
  const std::vector<float> kValues = {0.0f, -0.0f, 1.0f, -1.0f, kNaN, -kNaN, kInf, -kInf, 1e-45f, -1e-45f};
  std::mt19937 random(3);
  for (const auto& [n, k] : kShapes) {
    // Few different values: most are ties. From no special ones to all of them.
    for (const size_t values : {size_t{2}, size_t{6}, kValues.size()}) {
      Matrix logits(DType::kF32, 3, n);
      std::vector<float> z(static_cast<size_t>(3 * n));
      for (float& v : z) v = kValues[random() % values];
      logits.Write(z);
      ExpectTheSame(logits, k, std::to_string(values) + " values, " + std::to_string(k) + " of " + std::to_string(n));
    }
  }
}

TEST_P(RouterTest, ARowOfNaNStillHasDifferentExpertsInBounds) {
  Matrix logits(DType::kF32, 2, 40);
  std::vector<float> z(80, kNaN);
  z[39] = 1;  // the last one is the only number of the first row
  logits.Write(z);
  std::vector<int32_t> experts(6);
  std::vector<float> weights(6);
  ASSERT_EQ(RouteTopK(logits.view, 3, normalize(), experts.data(), weights.data(), {}), cudaSuccess);
  EXPECT_EQ(experts, (std::vector<int32_t>{0, 1, 39, 0, 1, 2}));
  for (const float weight : weights) EXPECT_TRUE(std::isnan(weight));
}

TEST_P(RouterTest, GivenExpertsFarFromTheLargestHaveTheCpusWeightsAndGradient) {
  std::mt19937 random(9);
  for (const auto& [n, k] : kShapes) {
    const int64_t t = 5;
    const Matrix logits(DType::kF32, t, n, 2, 40.0f);
    std::vector<int32_t> experts;
    for (int64_t row = 0; row < t; ++row) {
      std::vector<int32_t> all(static_cast<size_t>(n));
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), random);
      std::sort(all.begin(), all.begin() + k);
      experts.insert(experts.end(), all.begin(), all.begin() + k);
    }
    std::vector<float> expected(experts.size()), products(experts.size(), -1.5f);
    const Matrix gradient(DType::kF32, t, n);
    cpu_->RouteGiven(logits.view, experts, normalize(), expected.data());
    cpu_->RouteTopKBackward(logits.view, experts, normalize(), products.data(), gradient.view);
    InEveryOrder([&] {
      std::vector<float> weights(experts.size());
      const Matrix d_logits(DType::kF32, t, n);
      ASSERT_EQ(RouteGiven(logits.view, experts.data(), k, normalize(), weights.data(), {}), cudaSuccess);
      ASSERT_EQ(RouteTopKBackward(logits.view, experts.data(), k, normalize(), products.data(), d_logits.view, {}),
                cudaSuccess);
      ExpectSameFloats(weights, expected, "given of " + std::to_string(n));
      ExpectSameBytes(d_logits, gradient, "gradient of " + std::to_string(n));
    });
  }
}

TEST_P(RouterTest, ATokensBitsDoNotDependOnTheOthers) {
  const Matrix logits(DType::kF32, 21, 60, 4, 2.0f);
  std::vector<int32_t> all(21 * 4), one(4);
  std::vector<float> all_weights(all.size()), weight(4);
  ASSERT_EQ(RouteTopK(logits.view, 4, normalize(), all.data(), all_weights.data(), {}), cudaSuccess);
  for (int64_t t = 0; t < 21; ++t) {
    ASSERT_EQ(RouteTopK(logits.view.Rows(t, 1), 4, normalize(), one.data(), weight.data(), {}), cudaSuccess);
    EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + t * 4));
    EXPECT_EQ(std::memcmp(weight.data(), all_weights.data() + t * 4, 4 * sizeof(float)), 0);
  }
}

TEST(RouterDeathTest, AWrongCallIsSaidSo) {
  const Matrix logits(DType::kF32, 2, 4), halves(DType::kF16, 2, 4);
  int32_t experts[16];
  float weights[16];
  EXPECT_DEATH(static_cast<void>(RouteTopK(logits.view, 5, true, experts, weights, {})), "1 to N experts");
  EXPECT_DEATH(static_cast<void>(RouteTopK(halves.view, 2, true, experts, weights, {})), "fp32");
  EXPECT_DEATH(static_cast<void>(RouteTopKBackward(logits.view, experts, 2, true, weights, logits.view, {})),
               "read again");
}

TEST(RouterEmptyTest, NoTokensAreNoWork) {
  EXPECT_EQ(RouteTopK(Tensor(nullptr, DType::kF32, 0, 4), 2, true, nullptr, nullptr, {}), cudaSuccess);
}

}  // namespace
}  // namespace lockstep::cuda
