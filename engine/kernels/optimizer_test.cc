#include "engine/kernels/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace lockstep {
namespace {

std::vector<float> Random(int64_t n, unsigned seed, float scale) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = normal(generator);
  return values;
}

TEST(OptimizerTest, FollowsAdamWInDoublePrecisionOverSeveralSteps) {
  const int64_t n = 1003;
  std::vector<float> param = Random(n, 1, 0.5f), m(n, 0.0f), v(n, 0.0f);
  std::vector<double> exact(param.begin(), param.end()), exact_m(n, 0.0), exact_v(n, 0.0);
  ThreadPool pool(2);
  for (int64_t step = 1; step <= 20; ++step) {
    const std::vector<float> grad = Random(n, static_cast<unsigned>(step) + 10, 3.0f);
    const AdamWParams params{.lr = 1e-2f,
                             .beta1 = 0.9f,
                             .beta2 = 0.95f,
                             .eps = 1e-8f,
                             .weight_decay = 0.1f,
                             .step = step,
                             .grad_multiplier = 0.25f};
    AdamWStep(params, param.data(), m.data(), v.data(), grad.data(), n, pool);
    for (int64_t i = 0; i < n; ++i) {
      const double g = static_cast<double>(grad[i]) * 0.25;
      exact[i] *= 1 - 1e-2 * 0.1;
      exact_m[i] = 0.9 * exact_m[i] + 0.1 * g;
      exact_v[i] = 0.95 * exact_v[i] + 0.05 * g * g;
      const double m_hat = exact_m[i] / (1 - std::pow(0.9, step));
      const double v_hat = exact_v[i] / (1 - std::pow(0.95, step));
      exact[i] -= 1e-2 * m_hat / (std::sqrt(v_hat) + 1e-8);
    }
  }
  // Twenty steps of at most lr each; FP32 rounding of p and of the update's factors.
  for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(param[i], exact[i], 20 * 1e-2 * 2e-5 + 1e-6);
}

TEST(OptimizerTest, BitsDoNotDependOnTheThreads) {
  const int64_t n = 3 * 65536 + 17;
  const std::vector<float> grad = Random(n, 5, 1.0f);
  std::vector<std::vector<float>> results;
  std::vector<double> norms;
  for (const int threads : {1, 2, 3}) {
    std::vector<float> param = Random(n, 6, 1.0f), m(n, 0.0f), v(n, 0.0f);
    ThreadPool pool(threads);
    AdamWStep({.lr = 1e-3f}, param.data(), m.data(), v.data(), grad.data(), n, pool);
    results.push_back(param);
    norms.push_back(GradNormSquared(grad.data(), n, pool));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
  EXPECT_EQ(norms[0], norms[1]);
  EXPECT_EQ(norms[0], norms[2]);
  double exact = 0;
  for (const float g : grad) exact += static_cast<double>(g) * g;
  EXPECT_NEAR(norms[0] / exact, 1.0, 1e-12);
}

TEST(OptimizerTest, NormIsFiniteExactlyWhenEveryElementIs) {
  ThreadPool pool(2);
  for (const int64_t n : {1, 7, 70001}) {
    for (const int64_t at : {int64_t{0}, n / 2, n - 1}) {
      std::vector<float> grad(static_cast<size_t>(n), std::numeric_limits<float>::max());
      EXPECT_TRUE(std::isfinite(GradNormSquared(grad.data(), n, pool)));
      grad[static_cast<size_t>(at)] = std::numeric_limits<float>::infinity();
      EXPECT_FALSE(std::isfinite(GradNormSquared(grad.data(), n, pool)));
      grad[static_cast<size_t>(at)] = std::numeric_limits<float>::quiet_NaN();
      EXPECT_FALSE(std::isfinite(GradNormSquared(grad.data(), n, pool)));
    }
  }
}

}  // namespace
}  // namespace lockstep
