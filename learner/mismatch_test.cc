#include "learner/mismatch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "learner/testdata/mismatch_golden.h"

namespace lockstep {
namespace {

MismatchStats Whole(std::span<const int32_t> offsets, std::span<const float> mu, std::span<const float> pi) {
  MismatchStats stats;
  stats.AddSequences(offsets, mu, pi);
  return stats;
}

TEST(MismatchTest, EveryFigureAgreesWithNumpy) {
  EXPECT_EQ(kMismatchGoldens.size() * sizeof(double), sizeof(MismatchReport)) << "each figure has a golden";
  const MismatchReport report = Whole(kMismatchOffsets, kMismatchLogMu, kMismatchLogPi).Report();
  for (const MismatchGolden& golden : kMismatchGoldens) {
    // Double sums of 68 tokens; the correlation and the slope lose a few digits to a difference of sums.
    EXPECT_NEAR(report.*golden.field, golden.value, 1e-11 * (1 + std::abs(golden.value))) << golden.name;
  }
}

TEST(MismatchTest, EqualPoliciesGiveExactlyNoDifference) {
  const MismatchReport report = Whole(kMismatchOffsets, kMismatchLogPi, kMismatchLogPi).Report();
  for (const double zero :
       {report.kl_k1, report.kl_k2, report.kl_k3, report.mean_abs_log_ratio, report.max_abs_log_ratio,
        report.max_probability_difference, report.min_probability_difference, report.ratio_outside,
        report.chi_square_token, report.sequence_log_ratio_mean, report.sequence_log_ratio_min,
        report.sequence_log_ratio_max, report.sequence_log_ratio_slope, report.chi_square_sequence}) {
    EXPECT_EQ(zero, 0.0);
    EXPECT_FALSE(std::signbit(zero));
  }
  EXPECT_EQ(report.effective_sample_size_token, 1.0);
  EXPECT_EQ(report.effective_sample_size_sequence, 1.0);
  EXPECT_EQ(report.perplexity_ratio, 1.0);
  EXPECT_EQ(report.rollout_perplexity, report.training_perplexity);
  EXPECT_NEAR(report.probability_correlation, 1.0, 1e-14);
}

// By sequences, in another order, as micro-batches of two ranks would; through the fields that the ranks reduce.
TEST(MismatchTest, PartsAddUpToTheWhole) {
  const MismatchReport whole = Whole(kMismatchOffsets, kMismatchLogMu, kMismatchLogPi).Report();
  MismatchStats ranks[2], empty;
  for (size_t i = kMismatchOffsets.size() - 1; i-- > 0;) {
    const size_t begin = kMismatchOffsets[i], size = kMismatchOffsets[i + 1] - begin;
    const std::vector<int32_t> offsets = {0, static_cast<int32_t>(size)};
    ranks[i % 2].Add(
        Whole(offsets, std::span(kMismatchLogMu).subspan(begin, size), std::span(kMismatchLogPi).subspan(begin, size)));
  }
  MismatchStats all;
  all.Add(empty);  // a rank without a micro-batch
  all.Add(ranks[0]);
  all.Add(ranks[1]);
  const MismatchReport report = all.Report();
  for (const MismatchGolden& golden : kMismatchGoldens) {
    EXPECT_NEAR(report.*golden.field, whole.*golden.field, 1e-12 * (1 + std::abs(golden.value))) << golden.name;
  }
  EXPECT_EQ((all.SumFields().size() + all.MaxFields().size()) * sizeof(double), sizeof(MismatchStats))
      << "every field is reduced over the ranks";
}

TEST(MismatchTest, ABatchWithoutTokensHasFiniteFigures) {
  const MismatchReport report = MismatchStats().Report();
  for (const MismatchGolden& golden : kMismatchGoldens) EXPECT_TRUE(std::isfinite(report.*golden.field)) << golden.name;
}

TEST(MismatchTest, HopelesslyDistantPoliciesStayFinite) {
  const std::vector<float> mu(2000, -30.0f), pi(2000, -0.01f);
  const std::vector<int32_t> offsets = {0, 1000, 2000};
  for (const MismatchReport& report : {Whole(offsets, mu, pi).Report(), Whole(offsets, pi, mu).Report()}) {
    for (const MismatchGolden& golden : kMismatchGoldens) {
      EXPECT_TRUE(std::isfinite(report.*golden.field)) << golden.name;
    }
  }
  EXPECT_DOUBLE_EQ(Whole(offsets, mu, pi).Report().chi_square_sequence, std::exp(40.0) - 1);
  EXPECT_NEAR(Whole(offsets, mu, pi).Report().sequence_log_ratio_mean, 29990.0, 1e-2) << "the log ratio is not clamped";
}

// 64 responses whose log ratio falls by 1.01 nats in 1,000 tokens, the paper's figure for BF16.
TEST(MismatchTest, TheSlopeIsInNatsForAThousandTokens) {
  std::vector<int32_t> offsets = {0};
  std::vector<float> mu, pi;
  for (int i = 0; i < 64; ++i) {
    for (int t = 0; t < 10 + 7 * i; ++t) {
      mu.push_back(-1.0f);
      pi.push_back(-1.00101f);
    }
    offsets.push_back(static_cast<int32_t>(mu.size()));
  }
  EXPECT_NEAR(Whole(offsets, mu, pi).Report().sequence_log_ratio_slope, -1.01, 1e-4);
}

}  // namespace
}  // namespace lockstep
