#include "learner/advantage.h"

#include <gtest/gtest.h>

#include <cmath>

namespace lockstep {
namespace {

TEST(AdvantageTest, MeanIsTheRewardMinusTheGroupsMean) {
  const std::vector<double> rewards = {1, 0, 0, 1};
  EXPECT_EQ(GroupAdvantages(AdvantageKind::kMean, rewards), (std::vector<float>{0.5f, -0.5f, -0.5f, 0.5f}));
}

TEST(AdvantageTest, MeanStdDividesByTheUnbiasedDeviation) {
  const std::vector<double> rewards = {1, 0, 0, 1};
  const double std = std::sqrt(1.0 / 3);  // sum of squares 1 over n - 1 = 3
  const auto advantages = GroupAdvantages(AdvantageKind::kMeanStd, rewards);
  EXPECT_FLOAT_EQ(advantages[0], static_cast<float>(0.5 / (std + 1e-8)));
  EXPECT_FLOAT_EQ(advantages[1], -advantages[0]);
}

TEST(AdvantageTest, EqualRewardsGiveNoAdvantage) {
  const std::vector<double> rewards = {1, 1, 1};
  for (auto kind : {AdvantageKind::kMean, AdvantageKind::kMeanStd}) {
    for (float advantage : GroupAdvantages(kind, rewards)) EXPECT_EQ(advantage, 0.0f);
  }
}

TEST(AdvantageTest, AGroupOfOneHasNoAdvantage) {
  EXPECT_EQ(GroupAdvantages(AdvantageKind::kMeanStd, std::vector<double>{1.0}), std::vector<float>{0.0f});
}

TEST(AdvantageTest, AnUnknownKindIsRefusedByName) {
  EXPECT_EQ(ParseAdvantageKind("rank").status().message(), "algorithm.advantage is 'rank'; known are mean, mean_std");
}

}  // namespace
}  // namespace lockstep
