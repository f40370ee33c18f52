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

ObjectiveParams GoldenParams(const ObjectiveGolden& golden) {
  return ObjectiveParams{golden.is_clip, golden.clip_low, golden.clip_high, golden.is_low};
}

TEST(ObjectiveTest, LossAndGradientAgreeWithPyTorchAutograd) {
  ASSERT_EQ(kObjectiveGoldens.size(), ObjectiveNames().size()) << "each objective of the table has a golden";
  for (const ObjectiveGolden& golden : kObjectiveGoldens) {
    auto objective = FindObjective(golden.name);
    ASSERT_TRUE(objective.ok()) << objective.status();
    const Outcome outcome = Compute(**objective, GoldenBatch(kGoldenLogPi), GoldenParams(golden));
    // Ours computes in double from the same floats; 1e-12 is the printed precision of the loss, 2^-23 of a gradient.
    EXPECT_NEAR(outcome.stats.loss, golden.loss, 1e-11 + 1e-7 * std::abs(golden.loss)) << golden.name;
    EXPECT_EQ(outcome.stats.tokens, kGoldenLogPi.size());
    EXPECT_EQ(outcome.stats.sequences, kGoldenOffsets.size() - 1);
    for (size_t t = 0; t < golden.gradient.size(); ++t) {
      EXPECT_NEAR(outcome.gradient[t], golden.gradient[t], 2.4e-7 * std::abs(golden.gradient[t])) << golden.name << t;
    }
  }
}

// PPO's surrogate and GSPO's: the loss may be differenced as it is. (GSPO's s has 1/T of each token's log ratio, and T
// tokens have it in their loss.)
TEST(ObjectiveTest, GradientOfARatioAgreesWithFiniteDifferences) {
  for (const ObjectiveGolden& golden : kObjectiveGoldens) {
    const Objective& objective = **FindObjective(golden.name);
    if (!objective.spec->uses_old || objective.name == "cispo") continue;
    const ObjectiveParams params = GoldenParams(golden);
    const Outcome base = Compute(objective, GoldenBatch(kGoldenLogPi), params);
    for (size_t t = 0; t < kGoldenLogPi.size(); ++t) {
      const float step = 1.0f / 1024;
      std::vector<float> up = kGoldenLogPi, down = kGoldenLogPi;
      up[t] += step;
      down[t] -= step;
      const double difference = (Compute(objective, GoldenBatch(up), params).stats.loss -
                                 Compute(objective, GoldenBatch(down), params).stats.loss) /
                                (static_cast<double>(up[t]) - down[t]);
      // Second-order error of a central difference: h^2 / 6 times the third derivative, which is at most the loss.
      EXPECT_NEAR(base.gradient[t], difference, 1e-6) << golden.name << " token " << t;
    }
  }
}

// What is in sg() is held fixed: with stopped weights the loss is linear in log pi, so the loss is the gradient's inner
// product with log pi.
TEST(ObjectiveTest, GradientOfAStoppedWeightIsTheSlopeOfTheLossInLogPi) {
  int checked = 0;
  for (const ObjectiveGolden& golden : kObjectiveGoldens) {
    const Objective& objective = **FindObjective(golden.name);
    if (objective.spec->uses_old && objective.name != "cispo") continue;
    const Outcome base = Compute(objective, GoldenBatch(kGoldenLogPi), GoldenParams(golden));
    double loss = 0;
    for (size_t i = 0; i < kGoldenLogPi.size(); ++i) loss += base.gradient[i] * double{kGoldenLogPi[i]};
    EXPECT_NEAR(loss, base.stats.loss, 1e-6) << golden.name;
    ++checked;
  }
  EXPECT_EQ(checked, 10);
}

TEST(ObjectiveTest, TheKlPenaltyAgreesWithPyTorchAutogradAndFiniteDifferences) {
  const auto compute = [](const std::vector<float>& log_pi) {
    ObjectiveBatch batch = GoldenBatch(log_pi);
    batch.log_ref = kGoldenLogRef;
    Outcome outcome;
    outcome.gradient.resize(log_pi.size(), 1.0f);  // it adds
    AddKlPenalty(batch, kGoldenKlBeta, outcome.gradient, outcome.stats);
    return outcome;
  };
  const Outcome base = compute(kGoldenLogPi);
  EXPECT_NEAR(base.stats.kl_loss, kGoldenKlLoss, 1e-11 * std::abs(kGoldenKlLoss));
  EXPECT_EQ(base.stats.loss, 0) << "the policy's loss is another figure";
  for (size_t t = 0; t < kGoldenLogPi.size(); ++t) {
    EXPECT_NEAR(base.gradient[t] - 1.0f, kGoldenKlGradient[t], 1.2e-7) << t;
    if (kGoldenKlGradient[t] == 0) continue;  // the clamp acts: the loss is e^40 and its digits hide the others
    std::vector<float> up = kGoldenLogPi, down = kGoldenLogPi;
    up[t] += 1.0f / 1024;
    down[t] -= 1.0f / 1024;
    // Per token, by its own loss, for the same reason.
    double loss[2];
    for (int side = 0; side < 2; ++side) {
      const double l = double{kGoldenLogRef[t]} - (side == 0 ? up : down)[t];
      loss[side] = kGoldenKlBeta * (std::exp(l) - l - 1);
    }
    size_t sequence = 0;
    while (kGoldenOffsets[sequence + 1] <= static_cast<int32_t>(t)) ++sequence;
    const double difference = kGoldenWeight[sequence] * (loss[0] - loss[1]) / (double{up[t]} - down[t]);
    EXPECT_NEAR(kGoldenKlGradient[t], difference, 1e-6) << t;
  }
}

TEST(ObjectiveTest, TheKlPenaltyToItselfIsExactlyNothing) {
  ObjectiveBatch batch = GoldenBatch(kGoldenLogPi);
  batch.log_ref = kGoldenLogPi;
  std::vector<float> gradient(kGoldenLogPi.size(), 0.0f);
  ObjectiveStats stats;
  AddKlPenalty(batch, 0.1f, gradient, stats);
  EXPECT_EQ(stats.kl_sum, 0);
  for (float g : gradient) EXPECT_EQ(g, 0.0f);
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
    EXPECT_EQ(outcome.stats.MaskFraction(), 0) << name;
    EXPECT_EQ(outcome.stats.SequenceClipFraction(), 0) << name;
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

TEST(ObjectiveTest, CorrectionsOfGrpoComeFromTheOldPolicyAndNotFromThePresentOne) {
  HandCase hand;
  const std::vector<float> old = {-1.0f, -0.5f};  // pi_old = pi: r_t = 1, and rho = e^0.5, e^1
  ObjectiveBatch batch = hand.batch();
  batch.log_pi_old = old;
  Outcome outcome = Compute(**FindObjective("grpo_token_tis"), batch, ObjectiveParams{2, 0.2f, 0.2f});
  EXPECT_NEAR(outcome.gradient[0], -std::exp(0.5), 1e-6);
  EXPECT_FLOAT_EQ(outcome.gradient[1], -2.0f);
  outcome = Compute(**FindObjective("grpo_seq_mis"), batch, ObjectiveParams{10, 0.2f, 0.2f});
  EXPECT_NEAR(outcome.gradient[0], -std::exp(1.5), 1e-5);
  outcome = Compute(**FindObjective("grpo_seq_mis"), batch, ObjectiveParams{4, 0.2f, 0.2f});
  EXPECT_EQ(outcome.gradient[0], 0.0f);
  EXPECT_EQ(outcome.stats.MaskFraction(), 1);
  EXPECT_EQ(outcome.stats.SequenceMaskFraction(), 1);
  // The policy moves on: the ratio follows, the correction stays.
  const std::vector<float> moved = {-0.9f, -0.5f};
  batch.log_pi = moved;
  outcome = Compute(**FindObjective("grpo_token_tis"), batch, ObjectiveParams{2, 0.2f, 0.2f});
  EXPECT_NEAR(outcome.gradient[0], -std::exp(0.5) * std::exp(0.1), 1e-6);
}

TEST(ObjectiveTest, IcePopDropsTokensOnBothSides) {
  HandCase hand;
  const std::vector<float> old = {-3.0f, -0.5f};  // k = e^-1.5 = 0.22, e^1 = 2.7
  ObjectiveBatch batch = hand.batch();
  batch.log_pi_old = old;
  batch.log_pi = old;
  Outcome outcome = Compute(**FindObjective("icepop"), batch, ObjectiveParams{5, 0.2f, 0.2f, 0.5f});
  EXPECT_EQ(outcome.gradient[0], 0.0f);
  EXPECT_NEAR(outcome.gradient[1], -std::exp(1.0), 1e-6);
  EXPECT_EQ(outcome.stats.MaskFraction(), 0.5);
  outcome = Compute(**FindObjective("icepop"), batch, ObjectiveParams{2, 0.2f, 0.2f, 0.1f});
  EXPECT_NE(outcome.gradient[0], 0.0f);
  EXPECT_EQ(outcome.gradient[1], 0.0f);
}

TEST(ObjectiveTest, TheGeometricMaskLooksAtTheMeanAndNotAtTheProduct) {
  // 1000 tokens, each 0.05 % off: the product is e^0.5, the mean 1.0005.
  std::vector<float> log_pi(1000, -1.0f), log_mu(1000, -1.0005f), advantage = {1}, weight = {1};
  const std::vector<int32_t> offsets = {0, 1000};
  const ObjectiveBatch batch = {offsets, log_pi, log_mu, log_pi, advantage, weight};
  Outcome outcome = Compute(**FindObjective("pg_geo_rs"), batch, ObjectiveParams{1.001f, 0, 0, 0.999f});
  EXPECT_EQ(outcome.gradient[0], -1.0f);
  outcome = Compute(**FindObjective("pg_geo_mis"), batch, ObjectiveParams{1.001f, 0, 0, 0.999f});
  EXPECT_NEAR(outcome.gradient[0], -std::exp(0.5), 1e-3);
  outcome = Compute(**FindObjective("pg_geo_rs"), batch, ObjectiveParams{1.0004f, 0, 0, 0.999f});
  EXPECT_EQ(outcome.gradient[0], 0.0f);
}

TEST(ObjectiveTest, CispoKeepsAGradientWhereGrpoHasNone) {
  const HandCase hand;  // ratios 1.65 and 2.72, both above 1.2
  const Outcome outcome = Compute(**FindObjective("cispo"), hand.batch(), ObjectiveParams{0, 1.0f, 0.2f});
  EXPECT_NEAR(outcome.gradient[0], -1.2f, 1e-6);
  EXPECT_EQ(outcome.stats.ClipFraction(), 1);
}

TEST(ObjectiveTest, DefaultsAreThePapersWhereItHasSome) {
  const auto resolved = [](const char* name) {
    v1::AlgorithmConfig algorithm;
    algorithm.set_name(name);
    ResolveAlgorithm(&algorithm);
    return algorithm;
  };
  EXPECT_EQ(resolved("pg_token_tis").is_clip(), 2);
  EXPECT_EQ(resolved("pg_seq_tis").is_clip(), 3);
  EXPECT_EQ(resolved("grpo_token_tis").is_clip(), 2);
  EXPECT_EQ(resolved("grpo_seq_mis").is_clip(), 10);
  EXPECT_FLOAT_EQ(resolved("gspo").clip_low(), 3e-4f);
  EXPECT_FLOAT_EQ(resolved("gspo").clip_high(), 4e-4f);
  EXPECT_EQ(resolved("gspo").advantage(), "mean_std");
  EXPECT_FLOAT_EQ(resolved("dapo").clip_high(), 0.28f);
  EXPECT_EQ(resolved("dapo").aggregation(), "token_mean");
  EXPECT_EQ(resolved("dr_grpo").advantage(), "mean");
  EXPECT_EQ(resolved("dr_grpo").aggregation(), "constant");
  EXPECT_EQ(resolved("pg_seq_is").aggregation(), "constant");
  EXPECT_EQ(ObjectiveParams::From(resolved("pg_seq_is")).is_clip, std::numeric_limits<float>::infinity());
  v1::AlgorithmConfig own;
  own.set_name("grpo");
  own.set_clip_high(0.28f);
  own.set_aggregation("constant");
  ResolveAlgorithm(&own);
  EXPECT_FLOAT_EQ(own.clip_high(), 0.28f);
  EXPECT_EQ(own.aggregation(), "constant");
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
  EXPECT_EQ(FindObjective("ppo").status().message(),
            "algorithm.name is 'ppo'; known are pg, reinforce, pg_token_is, pg_token_tis, pg_seq_is, pg_seq_tis, "
            "pg_seq_mis, pg_geo_rs, pg_geo_mis, grpo, dr_grpo, dapo, grpo_token_tis, grpo_seq_tis, grpo_seq_mis, "
            "decoupled_ppo, icepop, gspo, cispo");
}

}  // namespace
}  // namespace lockstep
