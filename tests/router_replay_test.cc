// Router replay from end to end, without processes: a batch engine samples from a mixture of experts and sends its
// routing, a trainer computes the same tokens. lr is 0 and the weights are equal, so whatever differs is numerics.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "learner/group_assembly.h"
#include "learner/trainer.h"
#include "rollout_server/batch_engine.h"
#include "rollout_server/cpu_backend.h"
#include "rollout_server/test_support.h"

namespace lockstep {
namespace {

constexpr uint64_t kSeed = 3;
constexpr int kGroups = 12;
constexpr uint32_t kSamples = 4;

// Puts groups together as the learner does.
class AssemblingSink : public ResultSink {
 public:
  AssemblingSink(const v1::Group& request, const RoutingShape& routing) : assembly(request, routing) {}
  void Push(v1::GenerateResponse response) override {
    if (response.has_prompt_routing()) {
      EXPECT_TRUE(assembly.AddPromptRouting(response.prompt_routing()).ok());
    }
    if (response.has_chunk()) {
      const auto outcome = assembly.Add(response.chunk());
      EXPECT_TRUE(outcome.ok()) << outcome.status();
    }
  }
  bool Full() const override { return false; }
  void Fail(const std::string& reason) override { ADD_FAILURE() << reason; }

  GroupAssembly assembly;
};

std::vector<TrainSample> Rollout(const ModelConfig& config, DType dtype, Numerics numerics) {
  const std::unique_ptr<Ops> ops = MakeCpuOps(numerics, 1);
  MetricsRegistry registry("rollout");
  RolloutMetrics metrics(&registry);
  const auto weights = TinyMixtureWeights(config.num_experts, kSeed, 0, dtype);
  BatchEngine engine({.limits = {.max_decode_rows = 24, .prefill_chunk_tokens = 40}},
                     MakeCpuBackend(weights->config, dtype, 400, ops.get()), weights, &metrics);
  std::vector<std::shared_ptr<AssemblingSink>> sinks;
  for (uint64_t g = 1; g <= kGroups; ++g) {
    v1::Group request = TinyGroup(g, 3 + static_cast<int64_t>(5 * g), kSamples, 40);
    request.set_routing(true);
    sinks.push_back(std::make_shared<AssemblingSink>(request, RoutingShape(config)));
    engine.Submit(sinks.back()->assembly.NextIssue(), sinks.back());
  }
  while (engine.Step()) {
  }
  std::vector<TrainSample> samples;
  for (const auto& sink : sinks) {
    EXPECT_TRUE(sink->assembly.done());
    const v1::Group request = sink->assembly.request();
    for (const Sample& sample : sink->assembly.TakeSamples()) {
      TrainSample train;
      train.prompt = {request.prompt_token_ids().begin(), request.prompt_token_ids().end()};
      train.response = sample.tokens;
      train.log_mu = sample.log_probs;
      train.routing = *sample.prompt_routing + sample.routing;
      train.advantage = sample.sample_index % 2 == 0 ? 0.5f : -0.5f;
      samples.push_back(std::move(train));
    }
  }
  return samples;
}

TrainMetrics Train(const ModelConfig& config, DType dtype, Numerics numerics, const std::string& replay,
                   const std::vector<TrainSample>& samples, bool recompute = false, uint32_t updates = 1) {
  TrainerOptions options;
  options.config = config;
  options.dtype = dtype;
  options.numerics = numerics;
  options.learner.set_lr(0);
  options.learner.set_micro_batch_tokens(300);
  options.learner.set_threads(1);
  options.learner.set_router_replay(replay);
  options.learner.set_activation_recompute(recompute);
  options.algorithm.set_name(updates > 1 ? "grpo" : "pg_seq_is");
  options.algorithm.set_aggregation("token_mean");
  auto ranks = MakeSingleRankCollectives();
  auto trainer = Trainer::Create(options, ranks.get());
  EXPECT_TRUE(trainer.ok()) << trainer.status();
  InitializeArena(config, kSeed, 0.25f, (*trainer)->arena());
  EXPECT_TRUE((*trainer)->RefreshWeights().ok());
  auto metrics = (*trainer)->Step(samples, updates);
  EXPECT_TRUE(metrics.ok()) << metrics.status();
  return *metrics;
}

// Every position but each sample's last, in both layers.
double Choices(const std::vector<TrainSample>& samples) {
  double choices = 0;
  for (const TrainSample& s : samples) choices += 2.0 * static_cast<double>(s.prompt.size() + s.response.size() - 1);
  return choices;
}

// The same tokens under the same weights: replay takes the part of the mismatch away that comes from routing.
TEST(RouterReplay, InBf16OverAnFp16RolloutMakesTheMismatchSmaller) {
  const ModelConfig config = TinyMixtureConfig(4);
  const std::vector<TrainSample> samples = Rollout(config, DType::kF16, Numerics::kNative);
  const TrainMetrics off = Train(config, DType::kBF16, Numerics::kNative, "off", samples);
  const TrainMetrics measured = Train(config, DType::kBF16, Numerics::kNative, "measure", samples);
  const TrainMetrics replayed = Train(config, DType::kBF16, Numerics::kNative, "replay", samples);
  EXPECT_EQ(off.routing_choices, 0);
  EXPECT_EQ(measured.routing_choices, Choices(samples));
  EXPECT_EQ(replayed.routing_choices, Choices(samples));
  EXPECT_GT(measured.routing_differing, 0) << "no token is routed otherwise: the test proves nothing";
  EXPECT_GT(replayed.routing_differing, 0);
  EXPECT_LE(replayed.routing_differing, measured.routing_differing);
  const MismatchReport without = off.mismatch.Report(), with = replayed.mismatch.Report();
  EXPECT_EQ(measured.mismatch.Report().kl_k3, without.kl_k3) << "measuring changes nothing";
  EXPECT_EQ(measured.grad_norm, off.grad_norm);
  EXPECT_LT(with.kl_k3, without.kl_k3);
  EXPECT_LT(with.mean_abs_log_ratio, without.mean_abs_log_ratio);
  EXPECT_LE(with.max_abs_log_ratio, without.max_abs_log_ratio);
  RecordProperty("router_mismatch", std::to_string(measured.routing_differing / measured.routing_choices));
  RecordProperty("kl_k3_off", std::to_string(without.kl_k3));
  RecordProperty("kl_k3_replay", std::to_string(with.kl_k3));
}

TEST(RouterReplay, UnderMatchedNumericsNothingDiffersAtAll) {
  for (const int64_t experts : {4, 300}) {
    const ModelConfig config = TinyMixtureConfig(experts);
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      const std::vector<TrainSample> samples = Rollout(config, dtype, Numerics::kMatched);
      const double norm = Train(config, dtype, Numerics::kMatched, "off", samples).grad_norm;
      for (const bool recompute : {false, true}) {
        for (const char* replay : {"measure", "replay"}) {
          const TrainMetrics metrics = Train(config, dtype, Numerics::kMatched, replay, samples, recompute);
          EXPECT_EQ(metrics.routing_choices, Choices(samples));
          EXPECT_EQ(metrics.routing_differing, 0);
          EXPECT_EQ(metrics.mismatch.Report().max_abs_log_ratio, 0);
          EXPECT_EQ(metrics.mismatch.Report().kl_k3, 0);
          EXPECT_EQ(metrics.grad_norm, norm);
        }
      }
    }
  }
}

// With more than one update the old policy's pass is the one that the mismatch is of: each choice counts once.
TEST(RouterReplay, CountsTheOldPolicysPassWhereThereIsOne) {
  const ModelConfig config = TinyMixtureConfig(4);
  const std::vector<TrainSample> samples = Rollout(config, DType::kF16, Numerics::kNative);
  const TrainMetrics one = Train(config, DType::kBF16, Numerics::kNative, "replay", samples);
  const TrainMetrics two = Train(config, DType::kBF16, Numerics::kNative, "replay", samples, true, 2);
  EXPECT_EQ(two.updates, 2u);
  EXPECT_EQ(two.routing_choices, Choices(samples));
  EXPECT_EQ(two.routing_differing, one.routing_differing);
  EXPECT_EQ(two.mismatch.Report().kl_k3, one.mismatch.Report().kl_k3);
}

}  // namespace
}  // namespace lockstep
