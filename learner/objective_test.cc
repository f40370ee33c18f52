#include "learner/objective.h"

#include <gtest/gtest.h>

#include <cmath>

#include "learner/objectives/objectives.h"
#include "learner/testdata/objective_golden.h"

namespace lockstep {
namespace {

ObjectiveBatch GoldenBatch(std::span<const float> log_pi) {
  return ObjectiveBatch{kGoldenOffsets, log_pi, kGoldenLogMu, kGoldenLogOld, kGoldenAdvantage, kGoldenWeight};
}

struct Outcome {
  std::vector<float> gradient;
  ObjectiveStats stats;
};

Outcome Compute(const Objective& objective, const ObjectiveBatch& batch, const ObjectiveParams& params) {
  Outcome outcome;
  outcome.gradient.resize(batch.log_pi.size(), 1e9f);
  objective.compute(batch, params, outcome.gradient, outcome.stats);
  return outcome;
}

TEST(ObjectiveTest, LossAndGradientAgreeWithPyTorchAutograd) {
  ASSERT_EQ(kObjectiveGoldens.size(), ObjectiveNames().size()) << "each objective of the table has a golden";
  for (const ObjectiveGolden& golden : kObjectiveGoldens) {
    auto objective = FindObjective(golden.name);
    ASSERT_TRUE(objective.ok()) << objective.status();
    const Outcome outcome = Compute(**objective, GoldenBatch(kGoldenLogPi),
                                    ObjectiveParams{golden.is_clip, golden.clip_low, golden.clip_high});
    // Ours computes in double from the same floats; 1e-12 is the printed precision of the loss, 2^-23 of a gradient.
    EXPECT_NEAR(outcome.stats.loss, golden.loss, 1e-11 + 1e-7 * std::abs(golden.loss)) << golden.name;
    EXPECT_EQ(outcome.stats.tokens, kGoldenLogPi.size());
    for (size_t t = 0; t < golden.gradient.size(); ++t) {
      EXPECT_NEAR(outcome.gradient[t], golden.gradient[t], 2.4e-7 * std::abs(golden.gradient[t])) << golden.name << t;
    }
  }
}

// What is in sg() is held fixed: the importance weight of the objective at the unperturbed log pi.
TEST(ObjectiveTest, GradientAgreesWithFiniteDifferencesOfTheLossWithStoppedWeights) {
  for (const ObjectiveGolden& golden : kObjectiveGoldens) {
    const Objective& objective = **FindObjective(golden.name);
    const ObjectiveParams params{golden.is_clip, golden.clip_low, golden.clip_high};
    const Outcome base = Compute(objective, GoldenBatch(kGoldenLogPi), params);
    for (size_t t = 0; t < kGoldenLogPi.size(); ++t) {
      const float step = 1.0f / 1024;
      double difference;
      if (objective.needs_old_log_prob) {
        std::vector<float> up = kGoldenLogPi, down = kGoldenLogPi;
        up[t] += step;
        down[t] -= step;
        difference = (Compute(objective, GoldenBatch(up), params).stats.loss -
                      Compute(objective, GoldenBatch(down), params).stats.loss) /
                     (static_cast<double>(up[t]) - down[t]);
        // Second-order error of a central difference: h^2 / 6 times the third derivative, which is at most the loss.
        EXPECT_NEAR(base.gradient[t], difference, 1e-6) << golden.name << " token " << t;
      } else {
        // With stopped weights the loss is linear in log pi, so its value over log pi is the slope.
        std::vector<float> only(kGoldenLogPi.size(), 0.0f);
        double loss = 0;
        for (size_t i = 0; i < kGoldenLogPi.size(); ++i) loss += base.gradient[i] * double{kGoldenLogPi[i]};
        EXPECT_NEAR(loss, base.stats.loss, 1e-6) << golden.name;
        break;
      }
    }
  }
}

TEST(ObjectiveTest, EqualPoliciesMakeEveryImportanceSampledObjectiveThePlainOne) {
  ObjectiveBatch batch = GoldenBatch(kGoldenLogPi);
  batch.log_mu = kGoldenLogPi;
  batch.log_pi_old = kGoldenLogPi;
  const Outcome plain = Compute(**FindObjective("pg"), batch, {});
  for (std::string_view name : ObjectiveNames()) {
    const Objective& objective = **FindObjective(name);
    const Outcome outcome = Compute(objective, batch, ObjectiveParams{2.0f, 0.2f, 0.2f});
    for (size_t t = 0; t < plain.gradient.size(); ++t) EXPECT_FLOAT_EQ(outcome.gradient[t], plain.gradient[t]) << name;
    EXPECT_EQ(outcome.stats.ClipFraction(), 0) << name;
    EXPECT_DOUBLE_EQ(outcome.stats.EffectiveSampleSize(), 1.0) << name;
  }
}

// One sequence of two tokens, A = 2, w = 0.5, ratios e^0.5 and e^1: W = e^1.5 = 4.4817.
struct HandCase {
  std::vector<int32_t> offsets = {0, 2};
  std::vector<float> log_pi = {-1.0f, -0.5f};
  std::vector<float> log_mu = {-1.5f, -1.5f};
  std::vector<float> advantage = {2.0f};
  std::vector<float> weight = {0.5f};
  ObjectiveBatch batch() const { return {offsets, log_pi, log_mu, log_mu, advantage, weight}; }
};

TEST(ObjectiveTest, SequenceWeightIsTheProductOfTokenRatios) {
  const HandCase hand;
  const Outcome is = Compute(**FindObjective("pg_seq_is"), hand.batch(), {});
  EXPECT_NEAR(is.gradient[0], -std::exp(1.5), 1e-6);
  EXPECT_NEAR(is.gradient[1], -std::exp(1.5), 1e-6);
  EXPECT_NEAR(is.stats.loss, std::exp(1.5) * 1.5, 1e-6);
}

TEST(ObjectiveTest, TruncationClampsTheWeightAndAMaskDropsTheSequence) {
  const HandCase hand;
  const Outcome tis = Compute(**FindObjective("pg_seq_tis"), hand.batch(), ObjectiveParams{3.0f});
  EXPECT_FLOAT_EQ(tis.gradient[0], -3.0f);
  EXPECT_EQ(tis.stats.clipped_high, 2);
  const Outcome mis = Compute(**FindObjective("pg_seq_mis"), hand.batch(), ObjectiveParams{3.0f});
  EXPECT_EQ(mis.gradient[0], 0.0f);
  EXPECT_EQ(mis.stats.masked, 2);
  const Outcome token = Compute(**FindObjective("pg_token_tis"), hand.batch(), ObjectiveParams{2.0f});
  EXPECT_NEAR(token.gradient[0], -std::exp(0.5), 1e-6);
  EXPECT_FLOAT_EQ(token.gradient[1], -2.0f);
  EXPECT_EQ(token.stats.clipped_high, 1);
}

TEST(ObjectiveTest, GrpoStopsTheGradientOnlyWhereTheClipMakesTheLossLarger) {
  HandCase hand;  // ratios 1.65 and 2.72, both above 1.2
  Outcome outcome = Compute(**FindObjective("grpo"), hand.batch(), ObjectiveParams{0, 0.2f, 0.2f});
  EXPECT_EQ(outcome.gradient[0], 0.0f);
  EXPECT_NEAR(outcome.stats.loss, 2 * 0.5 * -2.0 * 1.2, 1e-6);
  EXPECT_EQ(outcome.stats.clipped_high, 2);
  hand.advantage = {-2.0f};  // pushing down a token that is too likely is never clipped
  outcome = Compute(**FindObjective("grpo"), hand.batch(), ObjectiveParams{0, 0.2f, 0.2f});
  EXPECT_NEAR(outcome.gradient[0], std::exp(0.5), 1e-6);
  EXPECT_EQ(outcome.stats.ClipFraction(), 0);
}

TEST(ObjectiveTest, HugeLogRatiosGiveFiniteGradients) {
  HandCase hand;
  hand.log_mu = {-300.0f, -300.0f};
  for (std::string_view name : ObjectiveNames()) {
    const Outcome outcome = Compute(**FindObjective(name), hand.batch(), {});
    EXPECT_TRUE(std::isfinite(outcome.gradient[0])) << name;
  }
}

TEST(ObjectiveTest, EffectiveSampleSizeOfOneDominantWeightIsOneOverN) {
  ObjectiveStats stats;
  stats.weights = 4;
  stats.weight_sum = 8;
  stats.weight_square_sum = 64;
  EXPECT_DOUBLE_EQ(stats.EffectiveSampleSize(), 0.25);
}

TEST(ObjectiveTest, AggregationWeightsFollowTheirDefinitions) {
  const std::vector<int64_t> lengths = {2, 8};
  EXPECT_EQ(*AggregationWeights("constant", lengths, 10), (std::vector<float>{1 / 20.0f, 1 / 20.0f}));
  EXPECT_EQ(*AggregationWeights("sequence_mean", lengths, 10), (std::vector<float>{1 / 4.0f, 1 / 16.0f}));
  EXPECT_EQ(*AggregationWeights("token_mean", lengths, 10), (std::vector<float>{1 / 10.0f, 1 / 10.0f}));
  EXPECT_EQ(AggregationWeights("sum", lengths, 10).status().message(),
            "algorithm.aggregation is 'sum'; known are constant, sequence_mean, token_mean");
}

TEST(ObjectiveTest, AnUnknownNameListsTheKnownOnes) {
  EXPECT_EQ(
      FindObjective("ppo").status().message(),
      "algorithm.name is 'ppo'; known are pg, pg_token_is, pg_token_tis, pg_seq_is, pg_seq_tis, pg_seq_mis, grpo");
}

}  // namespace
}  // namespace lockstep
