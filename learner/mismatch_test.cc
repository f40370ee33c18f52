#include "learner/mismatch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace lockstep {
namespace {

TEST(MismatchTest, EqualPoliciesGiveExactZeros) {
  const std::vector<float> log_probs = {-0.1f, -2.5f, -7.0f};
  MismatchStats stats;
  stats.AddTokens(log_probs, log_probs, {});
  EXPECT_EQ(stats.k1_sum, 0.0);
  EXPECT_EQ(stats.k2_sum, 0.0);
  EXPECT_EQ(stats.k3_sum, 0.0);
  EXPECT_EQ(stats.abs_max, 0.0);
  EXPECT_EQ(stats.tokens, 3);
}

TEST(MismatchTest, EstimatorsFollowTheirFormulas) {
  MismatchStats stats;
  stats.AddTokens(std::vector<float>{-1.0f, -1.0f}, std::vector<float>{-1.5f, -0.75f}, std::vector<float>{2.0f, 4.0f});
  EXPECT_DOUBLE_EQ(stats.Mean(stats.k1_sum), (0.5 - 0.25) / 2);
  EXPECT_DOUBLE_EQ(stats.Mean(stats.k2_sum), (0.125 + 0.03125) / 2);
  EXPECT_NEAR(stats.Mean(stats.k3_sum), (std::exp(-0.5) + 0.5 - 1 + std::exp(0.25) - 0.25 - 1) / 2, 1e-15);
  EXPECT_DOUBLE_EQ(stats.Mean(stats.abs_sum), 0.375);
  EXPECT_DOUBLE_EQ(stats.abs_max, 0.5);
  EXPECT_DOUBLE_EQ(stats.Mean(stats.entropy_sum), 3.0);
}

TEST(MismatchTest, PartsAddUpToTheWhole) {
  const std::vector<float> mu = {-1.0f, -2.0f, -0.5f}, pi = {-1.1f, -1.5f, -0.9f};
  MismatchStats whole, first, second;
  whole.AddTokens(mu, pi, {});
  first.AddTokens(std::span(mu).first(1), std::span(pi).first(1), {});
  second.AddTokens(std::span(mu).subspan(1), std::span(pi).subspan(1), {});
  first.Add(second);
  EXPECT_DOUBLE_EQ(first.k3_sum, whole.k3_sum);
  EXPECT_DOUBLE_EQ(first.abs_max, whole.abs_max);
}

}  // namespace
}  // namespace lockstep
