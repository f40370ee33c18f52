// Routing sent along with the samples of a mixture of experts.
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "rollout_server/batch_engine.h"
#include "rollout_server/cpu_backend.h"
#include "rollout_server/test_support.h"

namespace lockstep {
namespace {

class RoutingTest : public ::testing::Test {
 protected:
  std::unique_ptr<BatchEngine> MakeEngine(std::shared_ptr<const Weights> weights, int64_t pages = 2000,
                                          SchedulerLimits limits = {.max_decode_rows = 32,
                                                                    .prefill_chunk_tokens = 64}) {
    auto backend = MakeCpuBackend(weights->config, weights->dtype, pages, ops_.get());
    return std::make_unique<BatchEngine>(BatchEngineOptions{.limits = limits}, std::move(backend), std::move(weights),
                                         &metrics_);
  }
  static void RunToEnd(BatchEngine& engine) {
    for (int step = 0; step < 100'000 && engine.Step(); ++step) {
    }
    ASSERT_TRUE(engine.idle()) << "the engine stands still";
  }
  static v1::Group Group(uint64_t id, int64_t prompt, uint32_t samples, uint32_t max_tokens) {
    v1::Group group = TinyGroup(id, prompt, samples, max_tokens);
    group.set_routing(true);
    return group;
  }
  static std::vector<int32_t> PromptOf(const v1::Group& group) {
    return {group.prompt_token_ids().begin(), group.prompt_token_ids().end()};
  }
  std::string Expected(const Weights& weights, const v1::Group& group, const Received& sample) {
    return TrainingRouting(weights, ops_.get(), PromptOf(group), sample.tokens);
  }

  std::unique_ptr<Ops> ops_ = MakeCpuOps(Numerics::kMatched, 1);
  MetricsRegistry registry_{"rollout"};
  RolloutMetrics metrics_{&registry_};
};

TEST_F(RoutingTest, IsThatOfTheTrainingForwardWhateverTheBatchChunkOrPool) {
  uint64_t preemptions = 0;
  for (const int64_t experts : {4, 300}) {
    const auto weights = TinyMixtureWeights(experts, 1);
    std::vector<v1::Group> groups = {Group(1, 1, 2, 30)};
    for (uint64_t g = 2; g <= 8; ++g) groups.push_back(Group(g, 3 + 11 * static_cast<int64_t>(g), 3, 40));
    struct Setting {
      int64_t pages, rows, chunk;
    };
    for (const Setting& setting : {Setting{2000, 32, 64}, Setting{10, 7, 5}, Setting{14, 3, 16}}) {
      auto engine =
          MakeEngine(weights, setting.pages, {.max_decode_rows = setting.rows, .prefill_chunk_tokens = setting.chunk});
      auto sink = std::make_shared<RecordingSink>();
      for (const v1::Group& group : groups) engine->Submit(group, sink);
      RunToEnd(*engine);
      preemptions += engine->stats().preemptions;
      for (const v1::Group& group : groups) {
        EXPECT_EQ(sink->samples.prompt_routings(group.group_id()), group.prompt_token_ids_size() > 1 ? 1 : 0);
        for (uint32_t s = 0; s < group.num_samples(); ++s) {
          const Received& sample = sink->samples.at(group.group_id(), s);
          const size_t row_bytes = RoutingShape(weights->config).row_bytes();
          EXPECT_EQ(sample.routing.size(), sample.tokens.size() * row_bytes);
          EXPECT_EQ(sample.prompt_routing + sample.routing, Expected(*weights, group, sample))
              << "group " << group.group_id() << " sample " << s;
        }
      }
    }
  }
  EXPECT_GT(preemptions, 0u) << "the small pools were not small enough to prove anything";
}

TEST_F(RoutingTest, AskingForItChangesNoDrawAndNotAskingSendsNone) {
  const auto weights = TinyMixtureWeights(4, 2);
  Samples samples[2];
  for (const bool routing : {false, true}) {
    auto engine = MakeEngine(weights);
    auto sink = std::make_shared<RecordingSink>();
    v1::Group group = Group(1, 20, 4, 30);
    group.set_routing(routing);
    engine->Submit(group, sink);
    RunToEnd(*engine);
    samples[routing ? 1 : 0] = sink->samples;
  }
  for (uint32_t s = 0; s < 4; ++s) {
    EXPECT_TRUE(samples[0].at(1, s).SameDraws(samples[1].at(1, s)));
    EXPECT_EQ(samples[0].at(1, s).routing, "");
    EXPECT_EQ(samples[0].at(1, s).prompt_routing, "");
  }
}

TEST_F(RoutingTest, GroupsWithAndWithoutShareSteps) {
  const auto weights = TinyMixtureWeights(4, 2);
  auto engine = MakeEngine(weights);
  auto sink = std::make_shared<RecordingSink>();
  const v1::Group with = Group(1, 20, 2, 30);
  v1::Group without = Group(2, 25, 2, 30);
  without.set_routing(false);
  engine->Submit(without, sink);
  engine->Submit(with, sink);
  RunToEnd(*engine);
  for (uint32_t s = 0; s < 2; ++s) {
    const Received& sample = sink->samples.at(1, s);
    EXPECT_EQ(sample.prompt_routing + sample.routing, Expected(*weights, with, sample));
    EXPECT_EQ(sink->samples.at(2, s).routing, "");
  }
}

TEST_F(RoutingTest, ARetryOfSomeSamplesSendsThePromptsAgain) {
  const auto weights = TinyMixtureWeights(4, 2);
  auto engine = MakeEngine(weights);
  auto sink = std::make_shared<RecordingSink>();
  v1::Group group = Group(9, 20, 4, 30);
  group.set_attempt(2);
  group.add_sample_indices(3);
  engine->Submit(group, sink);
  RunToEnd(*engine);
  const Received& sample = sink->samples.at(9, 3);
  EXPECT_EQ(sample.prompt_routing + sample.routing, Expected(*weights, group, sample));
}

// A token's row is of the weights that it was drawn with, the prompt's rows of those of the first token.
TEST_F(RoutingTest, SwitchesUnderPreemptionKeepVersionsAndRoutingTogether) {
  for (InFlight in_flight : {InFlight::kFinish, InFlight::kContinue, InFlight::kRestart}) {
    auto sink = std::make_shared<RecordingSink>();
    std::vector<std::shared_ptr<const Weights>> sets = {TinyMixtureWeights(60, 20)};
    auto engine = MakeEngine(sets[0], 14, {.max_decode_rows = 8, .prefill_chunk_tokens = 16});
    std::vector<v1::Group> groups;
    for (uint64_t g = 1; g <= 6; ++g) {
      groups.push_back(Group(g, 20 + static_cast<int64_t>(g), 3, 60));
      engine->Submit(groups.back(), sink);
    }
    for (uint64_t version = 1; version <= 6; ++version) {
      for (int i = 0; i < 25; ++i) engine->Step();
      sets.push_back(TinyMixtureWeights(60, 20 + version, version));
      ASSERT_TRUE(engine->SwitchWeights(sets.back(), in_flight).ok());
    }
    RunToEnd(*engine);
    EXPECT_GT(engine->stats().preemptions, 0u);
    ASSERT_EQ(sink->samples.finished(), 18u);
    const size_t row = RoutingShape(sets[0]->config).row_bytes();
    size_t mixed = 0;
    for (const auto& [id, sample] : sink->samples.all()) {
      const v1::Group& group = groups[id.first - 1];
      std::vector<std::string> under;
      for (const auto& set : sets) under.push_back(Expected(*set, group, sample));
      const size_t prompt = static_cast<size_t>(group.prompt_token_ids_size()) - 1;
      EXPECT_EQ(sample.prompt_routing, under[sample.versions.front()].substr(0, prompt * row));
      ASSERT_EQ(sample.routing.size(), sample.tokens.size() * row);
      for (size_t i = 0; i < sample.tokens.size(); ++i) {
        EXPECT_EQ(sample.routing.substr(i * row, row), under[sample.versions[i]].substr((prompt + i) * row, row));
      }
      mixed += sample.versions.front() != sample.versions.back() ? 1 : 0;
    }
    if (in_flight == InFlight::kContinue) {
      EXPECT_GT(mixed, 0u) << "no sample saw a switch";
    }
  }
}

TEST_F(RoutingTest, ASampleThatGoesOnWithItsOldCacheKeepsARowAToken) {
  auto sink = std::make_shared<RecordingSink>();
  const auto old_weights = TinyMixtureWeights(4, 20);
  auto engine = MakeEngine(old_weights);
  const v1::Group group = Group(1, 37, 3, 40);
  engine->Submit(group, sink);
  for (int i = 0; i < 12; ++i) ASSERT_TRUE(engine->Step());
  ASSERT_TRUE(engine->SwitchWeights(TinyMixtureWeights(4, 21, 1), InFlight::kContinueStaleKv).ok());
  RunToEnd(*engine);
  const RoutingShape shape(old_weights->config);
  for (uint32_t s = 0; s < 3; ++s) {
    const Received& sample = sink->samples.at(1, s);
    EXPECT_TRUE(sample.stale_kv_cache);
    EXPECT_EQ(sample.routing.size(), 40 * shape.row_bytes());
    EXPECT_TRUE(CheckRouting(shape, sample.routing).ok());
    const auto old_tokens = static_cast<size_t>(std::count(sample.versions.begin(), sample.versions.end(), 0u));
    const size_t known = (36 + old_tokens) * shape.row_bytes();
    EXPECT_EQ((sample.prompt_routing + sample.routing).substr(0, known),
              Expected(*old_weights, group, sample).substr(0, known));
  }
}

}  // namespace
}  // namespace lockstep
