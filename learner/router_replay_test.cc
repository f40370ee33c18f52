// The trainer with routing of the rollout: what is refused, what stays the same to the bit, ranks and the reference.
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "engine/model/decoder.h"
#include "engine/model/routing.h"
#include "learner/step_message.h"
#include "learner/trainer.h"
#include "learner/trainer_test_util.h"
#include "proto/channel.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {
namespace {

TrainerOptions MixtureOptions(const std::string& replay) {
  TrainerOptions options = TinyOptions(DType::kF16);
  ModelConfig& config = options.config;
  config.architecture = "Qwen3MoeForCausalLM";
  config.qkv_bias = false;
  config.qk_norm = true;
  config.num_experts = 6;
  config.experts_per_token = 2;
  config.moe_intermediate_size = 24;
  config.norm_topk_prob = true;
  options.learner.set_lr(1e-3f);
  options.learner.set_router_replay(replay);
  return options;
}

std::unique_ptr<Trainer> MakeFresh(const TrainerOptions& options, Collectives* collectives) {
  auto trainer = Trainer::Create(options, collectives);
  EXPECT_TRUE(trainer.ok()) << trainer.status();
  InitializeArena(options.config, 5, 0.2f, (*trainer)->arena());
  EXPECT_TRUE((*trainer)->RefreshWeights().ok());
  return *std::move(trainer);
}

// The experts that the trainer's own weights choose for the sample.
std::string OwnRouting(const TrainerOptions& options, const TrainSample& sample) {
  const std::unique_ptr<Ops> ops = MakeCpuOps(options.numerics, 1);
  Weights weights(options.config, options.dtype);
  std::vector<float> arena(weights.layout.total_size);
  InitializeArena(options.config, 5, 0.2f, arena.data());
  weights.SetFromArena(arena.data());
  PackedBatch batch;
  batch.tokens = sample.prompt;
  batch.tokens.insert(batch.tokens.end(), sample.response.begin(), sample.response.end());
  batch.cu_seqlens = {0, static_cast<int32_t>(batch.tokens.size())};
  RoutingTrace trace;
  Decoder(options.config, options.dtype, ops.get()).ForwardPacked(weights, batch, 1, false, nullptr, nullptr, &trace);
  trace.experts.resize(trace.experts.size() - RoutingShape(options.config).row_bytes());
  return trace.experts;
}

std::vector<TrainSample> OwnSamples(const TrainerOptions& options, int count) {
  std::vector<TrainSample> samples = MakeSamples(count);
  for (TrainSample& sample : samples) sample.routing = OwnRouting(options, sample);
  return samples;
}

// Experts 0 and 5 everywhere.
std::vector<TrainSample> OtherSamples(const TrainerOptions& options, int count) {
  std::vector<TrainSample> samples = MakeSamples(count);
  for (TrainSample& sample : samples) {
    for (size_t i = 1; i < sample.prompt.size() + sample.response.size(); ++i) {
      for (int64_t layer = 0; layer < options.config.num_layers; ++layer) sample.routing += std::string("\0\5", 2);
    }
  }
  return samples;
}

struct Result {
  TrainMetrics metrics;
  std::vector<float> arena;
};

Result StepOnce(const TrainerOptions& options, const std::vector<TrainSample>& samples) {
  auto ranks = MakeSingleRankCollectives();
  auto trainer = MakeFresh(options, ranks.get());
  if (trainer->needs_reference()) {
    EXPECT_TRUE(trainer->CaptureReference().ok());
  }
  auto metrics = trainer->Step(samples, 1);
  EXPECT_TRUE(metrics.ok()) << metrics.status();
  return {*metrics, Copy(trainer->arena(), trainer->arena_size())};
}

TEST(RouterReplayTest, NeedsAModelWithExpertsAndAKnownName) {
  auto ranks = MakeSingleRankCollectives();
  TrainerOptions dense = TinyOptions(DType::kF16);
  dense.learner.set_router_replay("replay");
  EXPECT_EQ(Trainer::Create(dense, ranks.get()).status().message(),
            "learner.router_replay: 'replay' needs a model with experts, and this Qwen2ForCausalLM has none; set it to "
            "off");
  EXPECT_EQ(Trainer::Create(MixtureOptions("yes"), ranks.get()).status().message(),
            "learner.router_replay is 'yes'; known are off, measure, replay");
}

TEST(RouterReplayTest, OfTheRoutersOwnChoiceGivesTheSameStepToTheBit) {
  const TrainerOptions off = MixtureOptions("off");
  const std::vector<TrainSample> samples = OwnSamples(off, 20);
  const Result without = StepOnce(off, samples);
  for (const char* replay : {"measure", "replay"}) {
    const Result with = StepOnce(MixtureOptions(replay), samples);
    EXPECT_EQ(with.arena, without.arena);
    EXPECT_GT(with.metrics.routing_choices, 100);
    EXPECT_EQ(with.metrics.routing_differing, 0);
  }
  EXPECT_EQ(without.metrics.routing_choices, 0);
}

TEST(RouterReplayTest, OfAnotherChoiceTrainsOtherExpertsAndTheRouterStill) {
  const TrainerOptions options = MixtureOptions("replay");
  auto ranks = MakeSingleRankCollectives();
  auto trainer = MakeFresh(options, ranks.get());
  ASSERT_TRUE(trainer->Step(OtherSamples(options, 20), 1).ok());
  const ParamLayout layout(options.config);
  const auto norm = [&](const std::string& name) {
    double sum = 0;
    for (const ParamSpec& param : layout.params) {
      if (param.name != name) continue;
      for (int64_t i = 0; i < param.size(); ++i) sum += std::fabs(trainer->gradients()[param.offset + i]);
    }
    return sum;
  };
  EXPECT_GT(norm("layers.0.router"), 0);
  EXPECT_GT(norm("layers.0.experts.5.down"), 0);
  EXPECT_GT(norm("layers.0.experts.5.down"), 4 * norm("layers.0.experts.3.down"))
      << "only last positions, which have no loss below the top layer, choose expert 3";
}

// Samples without routing, as a ledger of before has them, stand beside samples with it.
TEST(RouterReplayTest, SamplesWithoutRoutingAreRoutedByTheLearner) {
  const TrainerOptions options = MixtureOptions("replay");
  std::vector<TrainSample> samples = OwnSamples(options, 20);
  const Result all = StepOnce(options, samples);
  for (size_t i = 0; i < samples.size(); i += 2) samples[i].routing.clear();
  const Result half = StepOnce(options, samples);
  EXPECT_EQ(half.arena, all.arena);
  EXPECT_LT(half.metrics.routing_choices, all.metrics.routing_choices);
  EXPECT_GT(half.metrics.routing_choices, 0);
}

TEST(RouterReplayTest, TheReferenceChoosesForItself) {
  TrainerOptions options = MixtureOptions("replay");
  options.algorithm.set_kl_beta(0.1f);
  options.learner.set_lr(0);
  // The reference is the policy; only the routing can come between them.
  EXPECT_EQ(StepOnce(options, OwnSamples(options, 20)).metrics.objective.kl_sum, 0);
  EXPECT_GT(StepOnce(options, OtherSamples(options, 20)).metrics.objective.kl_sum, 0);
  options.learner.set_router_replay("measure");
  const Result measured = StepOnce(options, OtherSamples(options, 20));
  EXPECT_EQ(measured.metrics.objective.kl_sum, 0);
  EXPECT_GT(measured.metrics.routing_differing, 0);
}

TEST(RouterReplayTest, RecomputedActivationsGiveTheSameStep) {
  TrainerOptions options = MixtureOptions("replay");
  const std::vector<TrainSample> samples = OtherSamples(options, 20);
  const Result kept = StepOnce(options, samples);
  options.learner.set_activation_recompute(true);
  EXPECT_EQ(StepOnce(options, samples).arena, kept.arena);
}

TEST(RouterReplayTest, TwoRanksReplayAndCountAsOne) {
  const TrainerOptions options = MixtureOptions("replay");
  const std::vector<TrainSample> samples = OtherSamples(options, 24);
  const Result one = StepOnce(options, samples);

  RendezvousService rendezvous(std::make_shared<RendezvousTable>());
  grpc::ServerBuilder builder;
  builder.RegisterService(&rendezvous);
  ListeningServer listening = *StartServer(builder, "127.0.0.1", 0);
  const auto join = [&](int rank) {
    return *MakeGlooCollectives(
        {.rank = rank, .world_size = 2, .rank0_address = listening.address, .prefix = "replay"});
  };
  std::vector<float> second;
  std::thread follower([&] {
    auto ranks = join(1);
    auto trainer = Trainer::Create(options, ranks.get());
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    const absl::Status status = FollowRank0(**trainer, *ranks);
    EXPECT_TRUE(status.ok()) << status;
    second = Copy((*trainer)->arena(), (*trainer)->arena_size());
  });
  auto ranks = join(0);
  auto trainer = MakeFresh(options, ranks.get());
  RankLeader leader(ranks.get());
  EXPECT_TRUE(trainer->BroadcastState().ok());
  StepMessage message;
  message.kind = StepMessage::Kind::kTrain;
  message.samples = samples;
  EXPECT_TRUE(leader.Send(message).ok());
  const auto metrics = trainer->Step(samples, 1);
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  message = StepMessage();
  message.kind = StepMessage::Kind::kEnd;
  EXPECT_TRUE(leader.Send(message).ok());
  follower.join();
  EXPECT_EQ(metrics->routing_choices, one.metrics.routing_choices);
  EXPECT_EQ(metrics->routing_differing, one.metrics.routing_differing);
  EXPECT_NEAR(metrics->objective.loss, one.metrics.objective.loss, 1e-12 * 24);
  EXPECT_EQ(Copy(trainer->arena(), trainer->arena_size()), second) << "the second rank replayed the same";
}

}  // namespace
}  // namespace lockstep
