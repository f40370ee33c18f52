#include "learner/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <thread>

#include "learner/step_message.h"
#include "learner/trainer_test_util.h"
#include "proto/channel.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {
namespace {

TrainerOptions Options(DType dtype) {
  TrainerOptions options = TinyOptions(dtype);
  options.learner.set_lr(1e-3f);
  options.learner.set_weight_decay(0.01f);
  return options;
}

TEST(PackMicroBatchesTest, KeepsTheOrderAndTheBudget) {
  const std::vector<TrainSample> samples = MakeSamples(40);
  const auto ranges = PackMicroBatches(samples, 30);
  size_t next = 0;
  for (const auto& [begin, end] : ranges) {
    EXPECT_EQ(begin, next);
    EXPECT_GT(end, begin);
    size_t tokens = 0;
    for (size_t i = begin; i < end; ++i) tokens += samples[i].prompt.size() + samples[i].response.size();
    EXPECT_LE(tokens, 30);
    next = end;
  }
  EXPECT_EQ(next, samples.size());
  EXPECT_EQ(PackMicroBatches(samples, 1).size(), samples.size()) << "a sample above the budget is one by itself";
}

// pg is linear in log pi, so its loss may be differenced as it is; lr 0 keeps the weights where the test puts them.
TEST(TrainerTest, TheGradientIsThatOfTheLossByFiniteDifferences) {
  TrainerOptions options = Options(DType::kF32);
  options.algorithm.set_name("pg");
  options.learner.set_lr(0);
  auto single = MakeSingleRankCollectives();
  auto trainer = MakeFreshTrainer(options, single.get());
  const auto samples = MakeSamples(6);
  ASSERT_TRUE(trainer->Step(samples, 1).ok());
  const std::vector<float> gradient = Copy(trainer->gradients(), trainer->arena_size());
  double checked = 0;
  for (int64_t i = 17; i < trainer->arena_size(); i += trainer->arena_size() / 24) {
    const float value = trainer->arena()[i];
    const float h = 4e-3f;
    double losses[2];
    for (int side = 0; side < 2; ++side) {
      trainer->arena()[i] = value + (side == 0 ? h : -h);
      ASSERT_TRUE(trainer->RefreshWeights().ok());
      losses[side] = trainer->Step(samples, 1)->objective.loss;
    }
    trainer->arena()[i] = value;
    // FP32 forward: losses carry about 1e-7 each, divided by 2h = 8e-3; curvature adds h^2.
    EXPECT_NEAR(gradient[i], (losses[0] - losses[1]) / (2.0 * h), 6e-5 + 2e-3 * std::abs(gradient[i])) << i;
    checked += std::abs(gradient[i]);
  }
  EXPECT_GT(checked, 1e-3) << "the checked elements have gradients";
}

// Moments and masters after one step, from the gradient that the trainer holds, by the formulas of AdamW.
TEST(TrainerTest, TheUpdateIsUnscaledClippedAdamW) {
  TrainerOptions options = Options(DType::kF16);
  options.learner.set_grad_clip(0.01f);
  auto single = MakeSingleRankCollectives();
  auto trainer = MakeFreshTrainer(options, single.get());
  const std::vector<float> before = Copy(trainer->arena(), trainer->arena_size());
  const auto metrics = trainer->Step(MakeSamples(12), 1);
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  ASSERT_EQ(metrics->loss_scale, 65536.0);
  double squares = 0;
  for (int64_t i = 0; i < trainer->arena_size(); ++i) squares += std::pow(trainer->gradients()[i] / 65536.0, 2);
  EXPECT_NEAR(metrics->grad_norm, std::sqrt(squares), 1e-9);
  ASSERT_GT(metrics->grad_norm, 0.01) << "the clip must act";
  const ParamLayout layout(options.config);
  for (const ParamSpec& param : layout.params) {
    for (int64_t i = param.offset; i < param.offset + param.size(); ++i) {
      const double g = trainer->gradients()[i] / 65536.0 * (0.01 / (metrics->grad_norm + 1e-6));
      const double m = 0.1 * g, v = 0.05 * g * g;  // bias corrections undo the factors at step 1
      const double decayed = before[i] * (1 - (param.weight_decay ? 1e-3 * 0.01 : 0.0));
      const double expected = decayed - 1e-3 * (m / 0.1) / (std::sqrt(v / 0.05) + 1e-8);
      ASSERT_NEAR(trainer->arena()[i], expected, 2e-7 * std::abs(before[i]) + 2e-6 * 1e-3 + 1e-9) << param.name;
    }
  }
}

TEST(TrainerTest, AGradientThatIsNotFiniteLeavesEverythingUntouchedAndHalvesTheScale) {
  TrainerOptions options = Options(DType::kF16);
  options.learner.mutable_loss_scale()->set_init(0x1p60f);
  auto single = MakeSingleRankCollectives();
  auto trainer = MakeFreshTrainer(options, single.get());
  std::vector<std::vector<float>> before;
  for (const StateArray& array : trainer->StateArrays()) before.push_back(Copy(array.data, array.size));
  const auto metrics = trainer->Step(MakeSamples(4), 1);
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_EQ(metrics->skipped, 1);
  EXPECT_EQ(trainer->loss_scaler().scale(), 0x1p59f);
  EXPECT_EQ(trainer->optimizer_steps(), 0);
  const auto arrays = trainer->StateArrays();
  for (size_t i = 0; i < arrays.size(); ++i) {
    EXPECT_EQ(Copy(arrays[i].data, arrays[i].size), before[i]) << arrays[i].name;
  }
}

TEST(TrainerTest, ARestoredTrainerTakesTheSameNextStepToTheBit) {
  auto single = MakeSingleRankCollectives();
  for (DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    auto first = MakeFreshTrainer(Options(dtype), single.get());
    ASSERT_TRUE(first->Step(MakeSamples(8), 2).ok());
    auto second = MakeFreshTrainer(Options(dtype), single.get());
    StateValues values;
    first->SaveState(&values);
    auto from = first->StateArrays(), to = second->StateArrays();
    for (size_t i = 0; i < from.size(); ++i) std::memcpy(to[i].data, from[i].data, from[i].size * sizeof(float));
    ASSERT_TRUE(second->RestoreState(values).ok());
    ASSERT_TRUE(first->Step(MakeSamples(10), 1).ok());
    ASSERT_TRUE(second->Step(MakeSamples(10), 1).ok());
    EXPECT_EQ(std::memcmp(first->arena(), second->arena(), first->arena_size() * sizeof(float)), 0);
  }
}

TEST(TrainerTest, MalformedStateIsRefused) {
  auto single = MakeSingleRankCollectives();
  auto trainer = MakeFreshTrainer(Options(DType::kF16), single.get());
  StateValues values;
  trainer->SaveState(&values);
  values["adam_step"] = "three";
  EXPECT_EQ(trainer->RestoreState(values).code(), absl::StatusCode::kDataLoss);
}

TEST(TrainerTest, SupervisedTrainingLearnsItsSamples) {
  TrainerOptions options = Options(DType::kF16);
  options.learner.set_lr(5e-3f);
  auto single = MakeSingleRankCollectives();
  auto trainer = MakeFreshTrainer(options, single.get());
  std::vector<TrainSample> samples = MakeSamples(6);
  for (TrainSample& sample : samples) sample.log_mu.clear();
  const double first = trainer->SupervisedStep(samples)->objective.loss;
  EXPECT_NEAR(first, std::log(48.0), 0.6) << "near a uniform guess at the start";
  double last = first;
  for (int i = 0; i < 60; ++i) last = trainer->SupervisedStep(samples)->objective.loss;
  EXPECT_LT(last, 0.3 * first);
}

TEST(TrainerTest, ManyUpdatesAStepUseTheOldPolicyOfBeforeTheFirst) {
  TrainerOptions options = Options(DType::kF32);
  options.algorithm.set_name("grpo");
  options.algorithm.set_clip_low(1e-6f);
  options.algorithm.set_clip_high(1e-6f);
  options.learner.set_lr(1e-2f);
  auto single = MakeSingleRankCollectives();
  auto trainer = MakeFreshTrainer(options, single.get());
  // With a clip this narrow, every token whose policy has moved the wrong way is clipped: in the second update there
  // are some exactly if the ratio is taken to the policy of before the first.
  const auto samples = MakeSamples(16);
  const auto one = trainer->Step(samples, 1);
  EXPECT_EQ(one->objective.ClipFraction(), 0) << "one update: pi_old is pi";
  const auto four = trainer->Step(samples, 4);
  EXPECT_EQ(four->updates, 4);
  EXPECT_GT(four->objective.ClipFraction(), 0.1);
}

TEST(TrainerTest, EveryObjectiveTrainsWithManyUpdatesAndEitherOldPolicy) {
  auto single = MakeSingleRankCollectives();
  const auto samples = MakeSamples(16);
  for (const AlgorithmSpec& spec : Algorithms()) {
    for (const char* old : {"recompute", "rollout"}) {
      TrainerOptions options = Options(DType::kF32);
      options.algorithm.set_name(std::string(spec.name));
      options.algorithm.set_aggregation("auto");
      options.algorithm.set_old_log_prob(old);
      auto trainer = MakeFreshTrainer(options, single.get());
      const auto metrics = trainer->Step(samples, 4);
      ASSERT_TRUE(metrics.ok()) << metrics.status();
      EXPECT_EQ(metrics->updates, 4) << spec.name;
      EXPECT_EQ(metrics->skipped, 0) << spec.name;
      EXPECT_TRUE(std::isfinite(metrics->objective.loss)) << spec.name;
      EXPECT_EQ(metrics->objective.sequences, 16) << spec.name;
      const bool one_more_pass = spec.uses_old && std::string(old) == "recompute";
      EXPECT_EQ(metrics->old_log_prob_seconds > 0, one_more_pass) << spec.name << " " << old;
      EXPECT_EQ(metrics->reference_seconds, 0) << spec.name;
      // The mismatch is that of the weights before they moved: all samples where they had a pass of their own, else
      // those of the first update.
      EXPECT_EQ(metrics->mismatch.sequences, one_more_pass ? 16 : 4) << spec.name << " " << old;
    }
  }
}

TEST(TrainerTest, MatchedNumericsMakeARecomputedOldPolicyTheSameBits) {
  TrainerOptions options = Options(DType::kF16);
  options.algorithm.set_name("grpo");
  options.learner.set_lr(0);
  auto single = MakeSingleRankCollectives();
  auto trainer = MakeFreshTrainer(options, single.get());
  const auto samples = MakeSamples(16);
  // With lr 0 the policy never moves, and the pass of all samples is packed in other ways than the updates are.
  const auto metrics = trainer->Step(samples, 4);
  EXPECT_GT(metrics->old_log_prob_seconds, 0);
  EXPECT_EQ(metrics->objective.ClipFraction(), 0);
  const auto again = trainer->Step(samples, 4);
  const MismatchReport first = metrics->mismatch.Report(), second = again->mismatch.Report();
  EXPECT_EQ(first.kl_k3, second.kl_k3) << "with lr 0 no figure drifts";
  EXPECT_EQ(first.sequence_log_ratio_slope, second.sequence_log_ratio_slope);
  EXPECT_EQ(metrics->objective.loss, again->objective.loss);
}

TEST(TrainerTest, TheKlPenaltyHoldsThePolicyAtItsReference) {
  auto single = MakeSingleRankCollectives();
  const auto samples = MakeSamples(16);
  double kl[2];
  for (int strong = 0; strong < 2; ++strong) {
    TrainerOptions options = Options(DType::kF16);
    options.learner.set_lr(1e-4f);
    options.algorithm.set_kl_beta(strong ? 10.0f : 1e-6f);
    auto trainer = MakeFreshTrainer(options, single.get());
    auto metrics = trainer->Step(samples, 1);
    ASSERT_TRUE(metrics.ok()) << metrics.status();
    EXPECT_EQ(metrics->objective.kl_sum, 0) << "at its own reference, bit for bit";
    EXPECT_GT(metrics->reference_seconds, 0);
    for (int i = 0; i < 40; ++i) metrics = trainer->Step(samples, 1);
    kl[strong] = metrics->objective.kl_sum / metrics->objective.tokens;
    EXPECT_GT(kl[strong], 0);
    EXPECT_GT(metrics->objective.kl_loss, 0);
  }
  EXPECT_LT(kl[1], 0.1 * kl[0]);
}

class TwoRanks {
 public:
  TwoRanks() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    auto started = StartServer(builder, "127.0.0.1", 0);
    EXPECT_TRUE(started.ok()) << started.status();
    listening_ = *std::move(started);
  }
  std::unique_ptr<Collectives> Join(int rank, const std::string& prefix) {
    auto joined =
        MakeGlooCollectives({.rank = rank, .world_size = 2, .rank0_address = listening_.address, .prefix = prefix});
    EXPECT_TRUE(joined.ok()) << joined.status();
    return *std::move(joined);
  }

 private:
  RendezvousService service_{std::make_shared<RendezvousTable>()};
  ListeningServer listening_;
};

struct RankResult {
  std::vector<float> gradient, arena;
  double loss = 0, kl_loss = 0;
  MismatchReport mismatch;
};

// Rank 1 starts from other weights and follows, as the process does. `prepare`: what rank 0 does before that.
std::vector<RankResult> StepOnTwoRanks(const TrainerOptions& options, const std::vector<TrainSample>& samples,
                                       const std::function<void(Trainer&)>& prepare = {}) {
  TwoRanks group;
  std::vector<RankResult> results(2);
  const auto keep = [&results](int rank, const Trainer& trainer) {
    results[rank].gradient = Copy(trainer.gradients(), trainer.arena_size());
    results[rank].arena = Copy(trainer.arena(), trainer.arena_size());
  };
  std::thread follower([&] {
    auto ranks = group.Join(1, "step");
    auto trainer = Trainer::Create(options, ranks.get());
    ASSERT_TRUE(trainer.ok());
    const absl::Status status = FollowRank0(**trainer, *ranks);
    EXPECT_TRUE(status.ok()) << status;
    keep(1, **trainer);
  });
  auto ranks = group.Join(0, "step");
  auto trainer = MakeFreshTrainer(options, ranks.get());
  if (prepare) prepare(*trainer);
  RankLeader leader(ranks.get());
  EXPECT_TRUE(trainer->BroadcastState().ok());
  EXPECT_TRUE(leader.Send(StepMessage()).ok());
  StepMessage message;
  message.kind = StepMessage::Kind::kTrain;
  message.samples = samples;
  EXPECT_TRUE(leader.Send(message).ok());
  const auto metrics = trainer->Step(samples, 1);
  EXPECT_TRUE(metrics.ok()) << metrics.status();
  results[0].loss = metrics->objective.loss;
  results[0].kl_loss = metrics->objective.kl_loss;
  results[0].mismatch = metrics->mismatch.Report();
  message = StepMessage();
  message.kind = StepMessage::Kind::kEnd;
  EXPECT_TRUE(leader.Send(message).ok());
  follower.join();
  keep(0, *trainer);
  return results;
}

TEST(TrainerTest, TwoRanksGiveTheStepOfOneWithinTheBoundOfAnFp32Sum) {
  const TrainerOptions options = Options(DType::kF16);
  const auto samples = MakeSamples(24);
  const std::vector<RankResult> two = StepOnTwoRanks(options, samples);
  EXPECT_EQ(two[0].arena, two[1].arena) << "all ranks hold the same bits";
  EXPECT_EQ(two[0].gradient, two[1].gradient);

  auto single = MakeSingleRankCollectives();
  auto one = MakeFreshTrainer(options, single.get());
  const auto metrics = one->Step(samples, 1);
  EXPECT_NEAR(metrics->objective.loss, two[0].loss, 1e-12 * 24);
  // Both pack alike here, so the micro-batches' own gradients are the same and only the order of their sum differs:
  // at most 2 (M - 1) u sum_j |g_j|. sum_j |g_j| of each element from M runs that hold one micro-batch each.
  const auto ranges = PackMicroBatches(samples, 40);
  std::vector<double> magnitude(one->arena_size(), 0.0);
  for (const auto& [begin, end] : ranges) {
    TrainerOptions alone = options;
    alone.learner.set_lr(0);
    auto trainer = MakeFreshTrainer(alone, single.get());
    ASSERT_TRUE(trainer->Step({samples.begin() + begin, samples.begin() + end}, 1).ok());
    // sequence_mean divides by the number of sequences: undo it for the whole batch.
    const double share = static_cast<double>(end - begin) / static_cast<double>(samples.size());
    for (int64_t i = 0; i < one->arena_size(); ++i) magnitude[i] += share * std::abs(trainer->gradients()[i]);
  }
  // Within a micro-batch the weight gradients are added row by row into the same arena, which the bound counts too: one
  // addition a token at most, T in all.
  double tokens = 0;
  for (const TrainSample& sample : samples) tokens += sample.prompt.size() + sample.response.size();
  const double factor = 2 * (tokens + ranges.size()) * 0x1p-24;
  int64_t different = 0;
  for (int64_t i = 0; i < one->arena_size(); ++i) {
    const double g1 = one->gradients()[i], g2 = two[0].gradient[i];
    // Rows cancel within a micro-batch; their absolute sum is bounded by the largest element's scale of the tensor.
    EXPECT_NEAR(g1, g2, factor * (magnitude[i] + 65536.0 * 1e-3)) << i;
    different += g1 != g2 ? 1 : 0;
  }
  EXPECT_LT(different, one->arena_size()) << "most sums agree";
}

TEST(TrainerTest, TwoRanksShareTheReferenceAndAddUpTheirFigures) {
  TrainerOptions options = Options(DType::kF16);
  options.algorithm.set_kl_beta(0.5f);
  const auto samples = MakeSamples(24);
  const auto move_on = [](Trainer& trainer) {  // from the captured reference
    for (int64_t i = 0; i < trainer.arena_size(); ++i) trainer.arena()[i] *= 1.0f + 0.1f * static_cast<float>(i % 3);
    EXPECT_TRUE(trainer.RefreshWeights().ok());
  };
  const std::vector<RankResult> two = StepOnTwoRanks(options, samples, move_on);
  EXPECT_EQ(two[0].arena, two[1].arena);
  auto single = MakeSingleRankCollectives();
  auto one = MakeFreshTrainer(options, single.get());
  move_on(*one);
  const auto metrics = one->Step(samples, 1);
  EXPECT_GT(metrics->objective.kl_loss, 0);
  EXPECT_NEAR(two[0].kl_loss, metrics->objective.kl_loss, 1e-12) << "rank 1 has the reference of rank 0";
  const MismatchReport expected = metrics->mismatch.Report();
  EXPECT_NEAR(two[0].mismatch.kl_k3, expected.kl_k3, 1e-12);
  EXPECT_EQ(two[0].mismatch.max_probability_difference, expected.max_probability_difference);
  EXPECT_EQ(two[0].mismatch.min_probability_difference, expected.min_probability_difference);
  EXPECT_EQ(two[0].mismatch.sequence_log_ratio_min, expected.sequence_log_ratio_min);
  EXPECT_NEAR(two[0].mismatch.sequence_log_ratio_slope, expected.sequence_log_ratio_slope, 1e-8);
}

TEST(StepMessageTest, SurvivesTheWireAndRefusesWhatIsCut) {
  StepMessage message;
  message.kind = StepMessage::Kind::kTrain;
  message.updates = 3;
  message.samples = MakeSamples(5);
  message.samples[1].routing = "seven b";
  message.samples[4].routing = std::string(1, '\0');
  const std::string bytes = EncodeStepMessage(message);
  const auto decoded = DecodeStepMessage(bytes);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->updates, 3);
  for (size_t i = 0; i < message.samples.size(); ++i) {
    EXPECT_EQ(decoded->samples[i].response, message.samples[i].response);
    EXPECT_EQ(decoded->samples[i].log_mu, message.samples[i].log_mu);
    EXPECT_EQ(decoded->samples[i].advantage, message.samples[i].advantage);
    EXPECT_EQ(decoded->samples[i].routing, message.samples[i].routing);
  }
  for (size_t cut = 0; cut < bytes.size(); ++cut) EXPECT_FALSE(DecodeStepMessage(bytes.substr(0, cut)).ok()) << cut;
  EXPECT_FALSE(DecodeStepMessage(bytes + "abcd").ok());
  std::string huge = bytes;
  huge[12] = huge[13] = huge[14] = huge[15] = '\xff';  // the first array's length
  EXPECT_FALSE(DecodeStepMessage(huge).ok());
}

}  // namespace
}  // namespace lockstep
