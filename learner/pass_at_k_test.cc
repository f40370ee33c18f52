#include "learner/pass_at_k.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace lockstep {
namespace {

// Every subset of k of n samples, the first c of which are correct, with equal weight.
double PassByEnumeration(int n, int c, int k) {
  int subsets = 0, passed = 0;
  for (uint32_t subset = 0; subset < (1u << n); ++subset) {
    if (std::popcount(subset) != k) continue;
    ++subsets;
    passed += (subset & ((1u << c) - 1)) != 0;
  }
  return static_cast<double>(passed) / subsets;
}

TEST(PassAtKTest, EqualsTheAverageOverAllSubsets) {
  for (int n = 1; n <= 12; ++n) {
    for (int c = 0; c <= n; ++c) {
      for (int k = 1; k <= n; ++k) {
        // k factors and one subtraction of numbers in [0, 1], each rounded once, and a division in each factor.
        const double bound = (2 * k + 1) * std::numeric_limits<double>::epsilon();
        EXPECT_NEAR(PassAtK(n, c, k), PassByEnumeration(n, c, k), bound) << n << " " << c << " " << k;
      }
    }
  }
}

TEST(PassAtKTest, AtOneIsTheMeanAndStaysFiniteForLargeN) {
  for (int c = 0; c <= 32; ++c) EXPECT_NEAR(PassAtK(32, c, 1), c / 32.0, 1e-15);
  const double large = PassAtK(100000, 3, 50000);
  EXPECT_NEAR(large, 1 - 0.125, 1e-4) << "three correct samples, each in the half with probability 1/2";
  EXPECT_EQ(PassAtK(100000, 0, 100000), 0);
  EXPECT_EQ(PassAtK(100000, 1, 100000), 1);
}

// All ways to put the winners of a tie first, by trying each tied class as the winner.
double MajorityByEnumeration(const std::vector<Vote>& votes, int k) {
  std::vector<int> counts(votes.size(), 0);
  int most = 0;
  for (int i = 0; i < k; ++i) {
    if (votes[i].answer_class >= 0) most = std::max(most, ++counts[votes[i].answer_class]);
  }
  if (most == 0) return 0;
  double winners = 0, right = 0;
  for (int candidate = 0; candidate < static_cast<int>(counts.size()); ++candidate) {
    if (counts[candidate] != most) continue;
    winners += 1;
    for (int i = 0; i < k; ++i) {
      if (votes[i].answer_class != candidate) continue;
      right += votes[i].correct;
      break;
    }
  }
  return right / winners;
}

TEST(MajorityAtKTest, EqualsTheCountOverAllVotesOfFiveSamplesAndThreeAnswers) {
  // 4^5 votes: class -1, 0, 1 or 2 for each sample; class 1 is the correct one.
  for (int code = 0; code < 1024; ++code) {
    std::vector<Vote> votes;
    for (int i = 0, rest = code; i < 5; ++i, rest /= 4) votes.push_back({rest % 4 - 1, rest % 4 - 1 == 1});
    for (int k = 1; k <= 5; ++k) {
      EXPECT_EQ(MajorityAtK(votes, k), MajorityByEnumeration(votes, k)) << code << " " << k;
    }
  }
}

TEST(MajorityAtKTest, TiesShareAndMissingAnswersDoNotVote) {
  const std::vector<Vote> votes = {{Vote::kNoAnswer, false}, {0, false}, {1, true}, {Vote::kNoAnswer, false}};
  EXPECT_EQ(MajorityAtK(votes, 1), 0);
  EXPECT_EQ(MajorityAtK(votes, 2), 0);
  EXPECT_EQ(MajorityAtK(votes, 4), 0.5);
}

TEST(ReportedKsTest, ArePowersOfTwoAndN) {
  EXPECT_EQ(ReportedKs(1), (std::vector<uint32_t>{1}));
  EXPECT_EQ(ReportedKs(8), (std::vector<uint32_t>{1, 2, 4, 8}));
  EXPECT_EQ(ReportedKs(6), (std::vector<uint32_t>{1, 2, 4, 6}));
  EXPECT_EQ(ReportedKs(1024).size(), 11u);
}

}  // namespace
}  // namespace lockstep
