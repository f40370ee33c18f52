#include "rollout_server/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace lockstep {
namespace {

std::vector<float> RandomLogits(int64_t vocab_size, uint64_t seed, float spread = 3) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(static_cast<size_t>(vocab_size));
  for (float& logit : logits) logit = normal(random);
  return logits;
}

float LogSumExp(const std::vector<float>& logits, float temperature) {
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit * (1.0f / temperature)));
  return static_cast<float>(std::log(sum));
}

// Counts of `draws` samples with different sample indices.
std::map<int32_t, int> Histogram(Sampler& sampler, int draws) {
  std::map<int32_t, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[sampler.Sample({1, 2, static_cast<uint32_t>(i), 0}).token];
  return counts;
}

TEST(SamplerTest, DrawsHaveTheFrequenciesOfTheirLogProbs) {
  for (int64_t vocab_size : {1, 2, 7, 8, 9, 255, 256, 257, 1000}) {
    const std::vector<float> logits = RandomLogits(vocab_size, static_cast<uint64_t>(vocab_size));
    Sampler sampler;
    sampler.SetRow(logits.data(), vocab_size, {.temperature = 0.7f}, LogSumExp(logits, 0.7f));
    const int draws = 200'000;
    double chi_square = 0;
    int cells = 0;
    const std::map<int32_t, int> counts = Histogram(sampler, draws);
    for (int64_t v = 0; v < vocab_size; ++v) {
      const double expected = draws * std::exp(logits[v] / 0.7 - LogSumExp(logits, 0.7f));
      const auto found = counts.find(static_cast<int32_t>(v));
      const int observed = found == counts.end() ? 0 : found->second;
      if (expected < 20) continue;
      ++cells;
      chi_square += (observed - expected) * (observed - expected) / expected;
    }
    // Mean cells, standard deviation sqrt(2 cells): six of them above.
    EXPECT_LT(chi_square, cells + 6 * std::sqrt(2.0 * cells) + 1) << "vocabulary " << vocab_size;
  }
}

TEST(SamplerTest, TemperatureLogProbIsScaledLogitMinusLogSumExpBitForBit) {
  const std::vector<float> logits = RandomLogits(500, 3);
  for (float temperature : {0.3f, 1.0f, 1.7f}) {
    const float lse = LogSumExp(logits, temperature);
    Sampler sampler;
    sampler.SetRow(logits.data(), 500, {.temperature = temperature}, lse);
    for (uint32_t i = 0; i < 200; ++i) {
      const Draw draw = sampler.Sample({5, 6, i, i});
      EXPECT_EQ(draw.log_prob, logits[static_cast<size_t>(draw.token)] * (1.0f / temperature) - lse);
    }
  }
}

TEST(SamplerTest, ADrawDependsOnItsKeyAlone) {
  const std::vector<float> logits = RandomLogits(300, 4);
  const std::vector<float> other = RandomLogits(300, 5);
  Sampler one, two;
  one.SetRow(logits.data(), 300, {}, LogSumExp(logits, 1));
  const Draw first = one.Sample({1, 2, 3, 4});
  two.SetRow(other.data(), 300, {.top_p = 0.5f}, LogSumExp(other, 1));
  two.Sample({9, 9, 9, 9});
  two.SetRow(logits.data(), 300, {}, LogSumExp(logits, 1));
  const Draw again = two.Sample({1, 2, 3, 4});
  EXPECT_EQ(first.token, again.token);
  EXPECT_EQ(first.log_prob, again.log_prob);
}

TEST(SamplerTest, KeysThatDifferInOnePartGiveOtherUniforms) {
  std::set<double> seen;
  for (uint64_t seed : {0u, 1u})
    for (uint64_t group : {0u, 1u})
      for (uint32_t sample : {0u, 1u, 2u})
        for (uint32_t token : {0u, 1u, 2u}) {
          const double u = DrawUniform({seed, group, sample, token});
          EXPECT_GT(u, 0);
          EXPECT_LT(u, 1);
          EXPECT_TRUE(seen.insert(u).second);
        }
}

TEST(SamplerTest, GreedyTakesTheLargestLogitAndTheSmallestIdOfATie) {
  const std::vector<float> logits = {1, 5, 2, 5, 0};
  Sampler sampler;
  sampler.SetRow(logits.data(), 5, {.temperature = 0}, 0);
  const Draw draw = sampler.Sample({1, 2, 3, 4});
  EXPECT_EQ(draw.token, 1);
  EXPECT_EQ(draw.log_prob, 0.0f);
}

TEST(SamplerTest, TopKKeepsTheKLargestAndRenormalises) {
  const std::vector<float> logits = RandomLogits(1000, 6);
  Sampler sampler;
  sampler.SetRow(logits.data(), 1000, {.top_k = 5}, LogSumExp(logits, 1));
  std::vector<float> sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  double mass = 0, expected_mass = 0;
  for (int i = 0; i < 5; ++i) expected_mass += std::exp(static_cast<double>(sorted[i]));
  std::map<int32_t, float> log_probs;
  for (uint32_t i = 0; i < 20'000; ++i) {
    const Draw draw = sampler.Sample({1, 1, i, 0});
    EXPECT_GE(logits[static_cast<size_t>(draw.token)], sorted[4]);
    log_probs[draw.token] = draw.log_prob;
  }
  EXPECT_EQ(log_probs.size(), 5u);
  for (const auto& [token, log_prob] : log_probs) {
    mass += std::exp(static_cast<double>(log_prob));
    EXPECT_NEAR(log_prob, logits[static_cast<size_t>(token)] - std::log(expected_mass), 1e-5);
  }
  EXPECT_NEAR(mass, 1, 1e-5);
}

TEST(SamplerTest, TopPKeepsTheSmallestHeadThatReachesTheMass) {
  // Probabilities 0.5, 0.3, 0.15, 0.05, shuffled.
  const std::vector<float> logits = {std::log(0.15f), std::log(0.5f), std::log(0.05f), std::log(0.3f)};
  Sampler sampler;
  sampler.SetRow(logits.data(), 4, {.top_p = 0.75f}, 0);
  const std::map<int32_t, int> counts = Histogram(sampler, 10'000);
  ASSERT_EQ(counts.size(), 2u);
  EXPECT_NEAR(counts.at(1), 6250, 300);
  EXPECT_NEAR(counts.at(3), 3750, 300);
  const Draw draw = sampler.Sample({1, 2, 0, 0});
  EXPECT_NEAR(draw.log_prob, std::log(draw.token == 1 ? 0.625 : 0.375), 1e-5);
}

TEST(SamplerTest, TopPSmallerThanTheLikeliestTokenKeepsThatToken) {
  const std::vector<float> logits = RandomLogits(100, 8);
  Sampler sampler;
  sampler.SetRow(logits.data(), 100, {.top_p = 1e-6f}, 0);
  for (uint32_t i = 0; i < 100; ++i) {
    const Draw draw = sampler.Sample({1, 2, i, 0});
    EXPECT_EQ(draw.token, std::max_element(logits.begin(), logits.end()) - logits.begin());
    EXPECT_EQ(draw.log_prob, 0.0f);
  }
}

TEST(SamplerTest, TopKIsAppliedBeforeTopP) {
  const std::vector<float> logits = {std::log(0.4f), std::log(0.3f), std::log(0.2f), std::log(0.1f)};
  Sampler sampler;
  // Of {0.4, 0.3}, 0.4 has 4/7 of the mass: top_p 0.5 of what top_k left keeps it alone.
  sampler.SetRow(logits.data(), 4, {.top_p = 0.5f, .top_k = 2}, 0);
  EXPECT_EQ(Histogram(sampler, 1000).size(), 1u);
}

TEST(SamplerTest, WhatTopKAndTopPKeepIsWhatAFullSortKeeps) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::vector<float> logits = RandomLogits(300, seed);
    for (float& logit : logits) logit = std::round(logit * 4) / 4;  // many ties
    std::vector<int32_t> order(300);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    for (float top_p : {0.1f, 0.5f, 0.93f, 1.0f}) {
      for (uint32_t top_k : {0u, 1u, 20u}) {
        if (top_p == 1 && top_k == 0) continue;
        const size_t count = top_k == 0 ? 300 : top_k;
        double total = 0, mass = 0;
        for (size_t i = 0; i < count; ++i) total += std::exp(static_cast<double>(logits[order[i]]));
        std::set<int32_t> kept;
        for (size_t i = 0; i < count && (i == 0 || mass < top_p * total * (1 - 1e-9)); ++i) {
          kept.insert(order[i]);
          mass += std::exp(static_cast<double>(logits[order[i]]));
        }
        Sampler sampler;
        sampler.SetRow(logits.data(), 300, {.top_p = top_p, .top_k = top_k}, 0);
        for (uint32_t i = 0; i < 300; ++i) {
          const Draw draw = sampler.Sample({seed, 2, i, 0});
          ASSERT_TRUE(kept.contains(draw.token)) << "top_p " << top_p << " top_k " << top_k << " seed " << seed;
          ASSERT_NEAR(draw.log_prob, logits[draw.token] - std::log(mass), 2e-5);
        }
      }
    }
  }
}

TEST(SamplerTest, ExtremeLogitsStayInRange) {
  std::vector<float> logits(300, -3e38f);
  logits[17] = 3e38f;
  Sampler sampler;
  sampler.SetRow(logits.data(), 300, {}, 3e38f);
  for (uint32_t i = 0; i < 100; ++i) EXPECT_EQ(sampler.Sample({1, 2, i, 0}).token, 17);
}

TEST(SamplerTest, FindsAnyNonFiniteLogitAtAnyPlace) {
  for (int64_t vocab_size : {1, 7, 8, 9, 64, 100}) {
    std::vector<float> logits(static_cast<size_t>(vocab_size), 1.0f);
    EXPECT_TRUE(AllFinite(logits.data(), vocab_size));
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                      -std::numeric_limits<float>::infinity()}) {
      for (size_t at = 0; at < logits.size(); ++at) {
        logits[at] = bad;
        EXPECT_FALSE(AllFinite(logits.data(), vocab_size)) << vocab_size << " " << at << " " << bad;
        logits[at] = 1.0f;
      }
    }
  }
}

}  // namespace
}  // namespace lockstep
