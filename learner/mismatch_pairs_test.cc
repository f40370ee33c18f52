#include "learner/mismatch_pairs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace lockstep {
namespace {

std::string Message(const std::string& pairs) { return std::string(ParsePrecisionPairs(pairs).status().message()); }

TEST(PrecisionPairs, AreLearnerThenRolloutAndNativeWhereNothingIsSaid) {
  const auto pairs = ParsePrecisionPairs("bf16/fp16,fp32/fp32@matched,bf16/bf16@native");
  ASSERT_TRUE(pairs.ok()) << pairs.status();
  ASSERT_EQ(pairs->size(), 3u);
  EXPECT_EQ((*pairs)[0].learner, (Precision{DType::kBF16, Numerics::kNative}));
  EXPECT_EQ((*pairs)[0].rollout, (Precision{DType::kF16, Numerics::kNative}));
  EXPECT_EQ((*pairs)[1].learner, (Precision{DType::kF32, Numerics::kMatched}));
  EXPECT_EQ((*pairs)[1].rollout, (Precision{DType::kF32, Numerics::kMatched}));
  EXPECT_EQ((*pairs)[0].Name(), "bf16/fp16");
  EXPECT_EQ((*pairs)[1].Name(), "fp32/fp32@matched");
  EXPECT_EQ((*pairs)[2].Name(), "bf16/bf16");
}

TEST(PrecisionPairs, BadOnesAreNamed) {
  for (const char* bad : {"", "bf16", "bf16/", "/fp16", "bf16/int8", "bf16/fp16/fp16", "bf16/fp16@", "bf16/fp16@exact",
                          "bf16/fp16@native@matched", "bf16/fp16,"}) {
    EXPECT_NE(Message(bad).find("is not LEARNER/ROLLOUT"), std::string::npos) << bad << ": " << Message(bad);
  }
  EXPECT_EQ(Message("bf16/fp16,bf16/fp16@native"), "--pairs names bf16/fp16 twice");
}

// y = 0.5 - 2 x / 1000 with residuals +0.1, -0.2, +0.1, orthogonal to 1 and x: the fit does not see them.
TEST(FitLength, IsLeastSquaresWithAnInterceptInNatsPerThousandTokens) {
  const LengthFit fit = FitLength({100, 200, 300}, {0.5 - 0.2 + 0.1, 0.5 - 0.4 - 0.2, 0.5 - 0.6 + 0.1});
  ASSERT_TRUE(fit.has_slope);
  EXPECT_NEAR(fit.slope, -2, 1e-12);
  EXPECT_NEAR(fit.intercept, 0.5, 1e-12);
  // sum x y = 100 * 0.4 + 200 * -0.1 + 300 * 0 = 20; sum x^2 = 140,000.
  EXPECT_NEAR(fit.slope_through_origin, 1000 * 20.0 / 140000, 1e-12);
}

TEST(FitLength, OfEqualLengthsHasNoSlope) {
  const LengthFit fit = FitLength({64, 64}, {-0.064, -0.128});
  EXPECT_FALSE(fit.has_slope);
  EXPECT_NEAR(fit.slope_through_origin, -1.5, 1e-12);
  EXPECT_FALSE(FitLength({}, {}).has_slope);
}

TEST(EvenIndices, AreSpreadOverTheWholeAndNeverRepeat) {
  EXPECT_EQ(EvenIndices(10, 4), (std::vector<size_t>{0, 2, 5, 7}));
  EXPECT_EQ(EvenIndices(3, 10), (std::vector<size_t>{0, 1, 2}));
  EXPECT_TRUE(EvenIndices(0, 5).empty());
  EXPECT_TRUE(EvenIndices(5, 0).empty());
}

TEST(PairReport, AgreesWithAHandComputedCase) {
  const float half = std::log(0.5f), quarter = std::log(0.25f), eighth = std::log(0.125f);
  // Sequence 1: mu 1/2, 1/4; pi 1/4, 1/4. Sequence 2, of three tokens: mu all 1/2; pi 1/2, 1/4, 1/8.
  const LogProbLists mu = {{half, quarter}, {}, {half, half, half}};
  const LogProbLists pi = {{quarter, quarter}, {}, {half, quarter, eighth}};
  const auto report = PairReport(ParsePrecisionPairs("bf16/fp16")->front(), mu, pi, 2);
  const double log2 = std::log(2.0);
  EXPECT_EQ(report["pair"], "bf16/fp16");
  EXPECT_EQ(report["learner_dtype"], "bf16");
  EXPECT_EQ(report["rollout_dtype"], "fp16");
  EXPECT_EQ(report["numerics"], "native");
  EXPECT_EQ(report["num_tokens"], 5);
  EXPECT_EQ(report["num_sequences"], 2);  // the empty response is none
  EXPECT_NEAR(report["kl_k1"], 4 * log2 / 5, 1e-6);
  // e^l - l - 1 with l = 0, -log 2 (twice), -2 log 2.
  EXPECT_NEAR(report["kl_k3"], (2 * (0.5 + log2 - 1) + 0.25 + 2 * log2 - 1) / 5, 1e-6);
  EXPECT_NEAR(report["mean_abs_log_ratio"], 4 * log2 / 5, 1e-6);
  EXPECT_NEAR(report["max_abs_log_ratio"], 2 * log2, 1e-6);
  EXPECT_NEAR(report["mean_abs_probability_difference"], (0.25 + 0.25 + 0.375) / 5, 1e-6);
  EXPECT_NEAR(report["max_abs_probability_difference"], 0.375, 1e-6);
  EXPECT_NEAR(report["sequence_kl"], 2 * log2, 1e-6);
  // From (2, -log 2) to (3, -3 log 2).
  EXPECT_NEAR(report["slope"], -2000 * log2, 1e-3);
  EXPECT_NEAR(report["intercept"], 3 * log2, 1e-5);
  EXPECT_EQ(report["sequence_points"]["length"], (std::vector<int>{2, 3}));
  EXPECT_NEAR(report["sequence_points"]["log_ratio"][1], -3 * log2, 1e-6);
  // Tokens 0 and 2 of 5.
  EXPECT_EQ(report["token_points"]["count"], 2);
  EXPECT_EQ(report["token_points"]["of"], 5);
  EXPECT_NEAR(report["token_points"]["pi"][0], 0.25, 1e-6);
  EXPECT_NEAR(report["token_points"]["pi"][1], 0.5, 1e-6);
}

TEST(PairReport, OfEqualLogProbsIsExactlyZero) {
  const LogProbLists same = {{-1.25f, -0.001f}, {-7.5f}};
  const auto report = PairReport(ParsePrecisionPairs("fp16/fp16@matched")->front(), same, same, 10);
  for (const char* field : {"kl_k1", "kl_k3", "mean_abs_log_ratio", "max_abs_log_ratio", "sequence_kl", "slope",
                            "intercept", "mean_abs_probability_difference"}) {
    EXPECT_EQ(report[field], 0.0) << field;
  }
}

}  // namespace
}  // namespace lockstep
