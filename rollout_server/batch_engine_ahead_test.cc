// Steps launched ahead of the one that is being collected, over a CPU backend that computes as late as a device may:
// what samples get must be what they get without.
#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "rollout_server/batch_engine.h"
#include "rollout_server/cpu_backend.h"
#include "rollout_server/late_backend.h"
#include "rollout_server/test_support.h"

namespace lockstep {
namespace {

// Keeps the messages of each sample as they came.
class ChunkSink final : public ResultSink {
 public:
  void Push(v1::GenerateResponse response) override {
    samples.Add(response);
    if (response.has_chunk()) {
      chunks[{response.chunk().group_id(), response.chunk().sample_index()}] += response.SerializeAsString();
    }
  }
  bool Full() const override { return full; }
  void Fail(const std::string& reason) override { failure = reason; }

  Samples samples;
  std::map<std::pair<uint64_t, uint32_t>, std::string> chunks;
  bool full = false;
  std::string failure;
};

class AheadTest : public ::testing::Test {
 protected:
  std::unique_ptr<BatchEngine> MakeEngine(std::shared_ptr<const Weights> weights, bool ahead, int64_t pages = 2000,
                                          SchedulerLimits limits = {.max_decode_rows = 32,
                                                                    .prefill_chunk_tokens = 256}) {
    auto backend = std::make_unique<LateBackend>(MakeCpuBackend(weights->config, weights->dtype, pages, ops_.get()));
    backend_ = backend.get();
    return std::make_unique<BatchEngine>(BatchEngineOptions{.limits = limits, .launch_ahead = ahead},
                                         std::move(backend), std::move(weights), &metrics_);
  }
  static void RunToEnd(BatchEngine& engine) {
    for (int step = 0; step < 100'000 && engine.Step(); ++step) {
    }
    ASSERT_TRUE(engine.status().ok()) << engine.status();
    ASSERT_TRUE(engine.idle()) << "the engine stands still";
    EXPECT_EQ(engine.stats().pages_used, 0) << "every page is free again";
  }
  static double Share(const BatchEngine& engine) {
    return static_cast<double>(engine.stats().steps_ahead) / static_cast<double>(engine.stats().steps);
  }
  // Every seventh token or so ends a sample, so that ends come at random.
  static void EndAtRandom(v1::Group& group) {
    for (int32_t token = 3; token < 97; token += 40) group.mutable_sampling()->add_stop_token_ids(token);
  }

  std::unique_ptr<Ops> ops_ = MakeCpuOps(Numerics::kMatched, 1);
  MetricsRegistry registry_{"rollout"};
  RolloutMetrics metrics_{&registry_};
  LateBackend* backend_ = nullptr;  // of the engine that was made last
};

// --- Random loads --------------------------------------------------------------------------------------------------

struct Load {
  uint64_t seed = 0;
  int64_t pages = 2000;
  SchedulerLimits limits = {.max_decode_rows = 6, .prefill_chunk_tokens = 40};
  bool routing = false;
  int cancels_percent = 0;  // of the steps, and half as many consumers go away
  int full_percent = 0;     // of the steps at which a consumer stops to read or begins again
};

class LoadTest : public AheadTest {
 protected:
  struct Result {
    std::vector<std::shared_ptr<ChunkSink>> sinks;
    EngineStats stats;
  };
  static v1::Group RandomGroup(uint64_t id, const Load& load, std::mt19937_64& random) {
    v1::Group group = TinyGroup(id, 1 + static_cast<int64_t>(random() % 60), 1 + static_cast<uint32_t>(random() % 4),
                                1 + static_cast<uint32_t>(random() % 45));
    if (random() % 3 != 0) EndAtRandom(group);
    group.set_routing(load.routing && random() % 2 == 0);
    return group;
  }
  // The same commands at the same numbers of calls of Step, with or without steps ahead.
  Result Run(const Load& load, const std::shared_ptr<const Weights>& weights, bool ahead) {
    std::mt19937_64 random(load.seed);
    const auto engine = MakeEngine(weights, ahead, load.pages, load.limits);
    Result result;
    for (int i = 0; i < 3; ++i) result.sinks.push_back(std::make_shared<ChunkSink>());
    uint64_t groups = 0;
    for (int step = 0; step < 400; ++step) {
      const auto dice = [&random](int percent) { return static_cast<int>(random() % 100) < percent; };
      auto& sink = result.sinks[random() % 3];
      if (step < 300 && dice(step == 0 ? 100 : 12)) engine->Submit(RandomGroup(++groups, load, random), sink);
      if (dice(load.cancels_percent)) engine->Cancel(sink.get(), 1 + random() % groups, 1);
      if (dice(load.cancels_percent / 2)) engine->Close(sink.get());
      if (dice(load.full_percent)) sink->full = !sink->full;
      engine->Step();
    }
    for (auto& sink : result.sinks) sink->full = false;
    RunToEnd(*engine);
    result.stats = engine->stats();
    return result;
  }
  static void ExpectPrefix(const Received& a, const Received& b) {
    const size_t count = std::min(a.tokens.size(), b.tokens.size());
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(a.tokens[i], b.tokens[i]);
      EXPECT_EQ(a.log_probs[i], b.log_probs[i]);
    }
  }
  static void ExpectTheSame(const Result& ahead, const Result& plain, bool all_end) {
    size_t compared = 0, stopped = 0;
    for (size_t i = 0; i < ahead.sinks.size(); ++i) {
      const Samples &got = ahead.sinks[i]->samples, &expected = plain.sinks[i]->samples;
      for (const auto& [id, sample] : expected.all()) {
        const auto found = got.all().find(id);
        const auto ended = [](const Received& s) {
          return s.finish_reason == v1::FINISH_REASON_STOP || s.finish_reason == v1::FINISH_REASON_LENGTH;
        };
        if (found == got.all().end() || !ended(sample) || !ended(found->second)) {
          EXPECT_FALSE(all_end) << id.first << " " << id.second;
          if (found != got.all().end()) ExpectPrefix(found->second, sample);
          continue;
        }
        ++compared;
        stopped += sample.finish_reason == v1::FINISH_REASON_STOP ? 1 : 0;
        EXPECT_EQ(ahead.sinks[i]->chunks.at(id), plain.sinks[i]->chunks.at(id)) << id.first << " " << id.second;
        EXPECT_EQ(found->second.prompt_routing, sample.prompt_routing);
      }
      if (all_end) {
        EXPECT_EQ(got.size(), expected.size());
        EXPECT_EQ(got.credits(), expected.credits());
      }
    }
    EXPECT_GT(compared, 20u);
    EXPECT_GT(stopped, 5u) << "no sample ended where nobody knew that it would";
    EXPECT_EQ(plain.stats.steps_ahead, 0u);
    EXPECT_GT(ahead.stats.steps_ahead * 4, ahead.stats.steps) << "hardly a step was launched ahead";
  }
};

TEST_F(LoadTest, SamplesThatEndAtRandomGetWhatTheyGetWithout) {
  const auto weights = TinyWeights(1);
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const Load load = {.seed = seed};
    ExpectTheSame(Run(load, weights, true), Run(load, weights, false), true);
  }
}

TEST_F(LoadTest, EvictionsChangeNothing) {
  const auto weights = TinyWeights(2);
  uint64_t preemptions = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const Load load = {.seed = seed, .pages = 14};
    const Result ahead = Run(load, weights, true);
    preemptions += ahead.stats.preemptions;
    ExpectTheSame(ahead, Run(load, weights, false), true);
  }
  EXPECT_GT(preemptions, 0u) << "the small pools were not small enough to prove anything";
}

TEST_F(LoadTest, CancelsAndConsumersThatComeAndGoChangeNobodyElse) {
  const auto weights = TinyWeights(3);
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    const Load load = {.seed = seed, .pages = seed % 2 == 0 ? 2000 : 20, .cancels_percent = 4, .full_percent = 5};
    ExpectTheSame(Run(load, weights, true), Run(load, weights, false), false);
  }
}

TEST_F(LoadTest, RoutingIsRecordedAlongside) {
  const auto weights = TinyMixtureWeights(4, 4);
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const Load load = {.seed = seed, .pages = seed == 3 ? 14 : 2000, .routing = true};
    ExpectTheSame(Run(load, weights, true), Run(load, weights, false), true);
  }
}

// --- Weight switches -----------------------------------------------------------------------------------------------

class SwitchAheadTest : public AheadTest {
 protected:
  // A sample alone, without steps ahead, which is switched to each of the versions that it was seen with, at the token
  // where it first was.
  Received Replay(const v1::Group& group, uint32_t sample_index, const std::vector<uint64_t>& versions,
                  InFlight in_flight) {
    v1::Group one = group;
    one.add_sample_indices(sample_index);
    auto sink = std::make_shared<ChunkSink>();
    const auto engine = MakeEngine(sets_[versions.front()], false);
    engine->Submit(one, sink);
    for (size_t token = 0; token < versions.size(); ++token) {
      if (token > 0 && versions[token] != versions[token - 1]) {
        EXPECT_TRUE(engine->SwitchWeights(sets_[versions[token]], in_flight).ok());
      }
      engine->Step();
    }
    RunToEnd(*engine);
    return sink->samples.at(group.group_id(), sample_index);
  }
  void Run(InFlight in_flight, uint64_t seed) {
    std::mt19937_64 random(seed);
    sets_ = {TinyWeights(20)};
    auto sink = std::make_shared<ChunkSink>();
    const auto engine = MakeEngine(sets_[0], true);
    std::map<uint64_t, v1::Group> groups;
    for (int step = 0; step < 240; ++step) {
      if (step % 20 == 0) {
        v1::Group group = TinyGroup(groups.size() + 1, 1 + static_cast<int64_t>(random() % 60), 3,
                                    20 + static_cast<uint32_t>(random() % 60));
        if (random() % 2 == 0) EndAtRandom(group);
        groups[group.group_id()] = group;
        engine->Submit(group, sink);
      }
      if (random() % 25 == 0) {
        sets_.push_back(TinyWeights(20 + sets_.size(), sets_.size()));
        ASSERT_TRUE(engine->SwitchWeights(sets_.back(), in_flight).ok());
      }
      engine->Step();
    }
    RunToEnd(*engine);
    EXPECT_GT(Share(*engine), 0.5);
    EXPECT_GT(sets_.size(), 5u);
    ASSERT_EQ(sink->samples.finished(), 36u);
    for (const auto& [id, sample] : sink->samples.all()) {
      // Of too many sets the oldest is gone on from as under `continue`.
      const InFlight replayed = in_flight == InFlight::kFinish ? InFlight::kContinue : in_flight;
      const Received expected = Replay(groups[id.first], id.second, sample.versions, replayed);
      EXPECT_TRUE(sample.SameDraws(expected)) << id.first << " " << id.second;
      EXPECT_EQ(sample.versions, expected.versions);
      EXPECT_EQ(sample.finish_reason, expected.finish_reason);
      EXPECT_EQ(sample.stale_kv_cache, expected.stale_kv_cache);
      mixed_ += sample.versions.front() != sample.versions.back() ? 1 : 0;
    }
  }
  std::vector<std::shared_ptr<const Weights>> sets_;
  int mixed_ = 0;  // samples that saw a switch
};

TEST_F(SwitchAheadTest, FinishKeepsTheOldSetAlsoWhereSetsTakeTurns) {
  for (uint64_t seed = 1; seed <= 3; ++seed) Run(InFlight::kFinish, seed);
}
TEST_F(SwitchAheadTest, ContinueRecomputesWithTheNewSetFromTheSameToken) {
  for (uint64_t seed = 1; seed <= 3; ++seed) Run(InFlight::kContinue, seed);
  EXPECT_GT(mixed_, 10);
}
TEST_F(SwitchAheadTest, AStaleCacheHasTheStepThatWasInFlight) {
  for (uint64_t seed = 1; seed <= 3; ++seed) Run(InFlight::kContinueStaleKv, seed);
  EXPECT_GT(mixed_, 10);
}
TEST_F(SwitchAheadTest, RestartBeginsAnew) {
  for (uint64_t seed = 1; seed <= 3; ++seed) Run(InFlight::kRestart, seed);
}

// --- The rules -----------------------------------------------------------------------------------------------------

TEST_F(AheadTest, AFullBatchWithAQueueBehindItIsLaunchedAhead) {
  uint64_t steps = 0;
  for (const bool ahead : {false, true}) {
    const auto engine = MakeEngine(TinyWeights(5), ahead, 2000, {.max_decode_rows = 4, .prefill_chunk_tokens = 64});
    auto sink = std::make_shared<RecordingSink>();
    for (uint64_t g = 1; g <= 5; ++g) engine->Submit(TinyGroup(g, 60, 4, 50), sink);
    for (int step = 0; step < 130; ++step) ASSERT_TRUE(engine->Step());
    EXPECT_GT(engine->stats().waiting, 0u);
    EXPECT_EQ(Share(*engine) > 0.9, ahead) << Share(*engine);
    RunToEnd(*engine);
    if (!ahead) steps = engine->stats().steps;
    EXPECT_EQ(engine->stats().steps, steps) << "what is known to end costs no step";
  }
}

TEST_F(AheadTest, AKnownEndIsNotRunInto) {
  const auto engine = MakeEngine(TinyWeights(5), true);
  auto sink = std::make_shared<RecordingSink>();
  engine->Submit(TinyGroup(1, 20, 1, 10), sink);
  engine->Submit(TinyGroup(2, 20, 1, 20), sink);
  RunToEnd(*engine);
  EXPECT_EQ(engine->stats().steps, 20u);
  EXPECT_EQ(engine->stats().steps_ahead, 18u);
}

TEST_F(AheadTest, ARequestIsAdmittedAtMostOneStepLater) {
  for (const bool ahead : {false, true}) {
    const auto engine = MakeEngine(TinyWeights(5), ahead);
    auto sink = std::make_shared<RecordingSink>();
    engine->Submit(TinyGroup(1, 20, 1, 100), sink);
    for (int step = 0; step < 10; ++step) ASSERT_TRUE(engine->Step());
    engine->Submit(TinyGroup(2, 20, 1, 1), sink);
    ASSERT_TRUE(engine->Step());
    if (ahead) {
      EXPECT_EQ(sink->samples.finished(), 0u) << "a step was in flight";
      ASSERT_TRUE(engine->Step());
    }
    EXPECT_EQ(sink->samples.finished(), 1u);
    RunToEnd(*engine);
  }
}

TEST_F(AheadTest, WhatACancelledOrClosedSampleHoldsIsGivenBackWithTheStepInFlight) {
  const auto engine = MakeEngine(TinyWeights(7), true);
  auto sink = std::make_shared<RecordingSink>(), other = std::make_shared<RecordingSink>();
  engine->Submit(TinyGroup(1, 40, 4, 500), sink);
  engine->Submit(TinyGroup(2, 40, 1, 500), other);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(engine->Step());
  const int64_t used = engine->stats().pages_used;
  engine->Cancel(sink.get(), 1, 1);
  EXPECT_EQ(sink->samples.at(1, 3).finish_reason, v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(sink->samples.at(1, 3).tokens.size(), 5u);
  EXPECT_EQ(sink->samples.credits(), 1u);
  EXPECT_EQ(engine->stats().pages_used, used);
  ASSERT_TRUE(engine->Step());
  EXPECT_LT(engine->stats().pages_used, used);
  engine->Close(other.get());
  EXPECT_FALSE(engine->idle()) << "a step is in flight";
  EXPECT_TRUE(engine->Step());
  EXPECT_TRUE(engine->idle());
  EXPECT_EQ(engine->stats().pages_used, 0);
  EXPECT_FALSE(engine->Step());
}

TEST_F(AheadTest, AWeightSetLivesAsLongAsAStepInFlightReadsIt) {
  auto old_weights = TinyWeights(6);
  v1::Group group = TinyGroup(2, 10, 1, 60);
  auto sink = std::make_shared<RecordingSink>();
  {
    const auto engine = MakeEngine(old_weights, false);
    engine->Submit(group, sink);
    RunToEnd(*engine);
  }
  const std::vector<int32_t> tokens = sink->samples.at(2, 0).tokens;
  group.mutable_sampling()->add_stop_token_ids(tokens[20]);
  const auto end = std::find(tokens.begin(), tokens.end(), tokens[20]) - tokens.begin() + 1;
  const std::weak_ptr<const Weights> watched = old_weights;
  const auto engine = MakeEngine(std::exchange(old_weights, nullptr), true);
  sink = std::make_shared<RecordingSink>();
  engine->Submit(group, sink);
  ASSERT_TRUE(engine->Step());
  ASSERT_TRUE(engine->SwitchWeights(TinyWeights(7, 1), InFlight::kFinish).ok());
  while (sink->samples.finished() == 0) ASSERT_TRUE(engine->Step());
  EXPECT_EQ(sink->samples.at(2, 0).tokens.size(), static_cast<size_t>(end));
  EXPECT_FALSE(watched.expired()) << "the step in flight reads it";
  EXPECT_TRUE(engine->Step());
  EXPECT_TRUE(watched.expired());
  RunToEnd(*engine);
}

TEST_F(AheadTest, ADeviceThatIsLostBehindAnyStepEndsEveryConsumer) {
  for (int good = 0; good < 60; good += 3) {
    const auto engine = MakeEngine(TinyWeights(12), true, 40, {.max_decode_rows = 8, .prefill_chunk_tokens = 64});
    auto sink = std::make_shared<RecordingSink>(), other = std::make_shared<RecordingSink>();
    v1::Group group = TinyGroup(1, 10, 2, 50);
    EndAtRandom(group);
    engine->Submit(group, sink);
    engine->Submit(TinyGroup(2, 10, 2, 80), other);
    backend_->LoseAfter(good);
    for (int step = 0; step < good; ++step) ASSERT_TRUE(engine->Step());
    EXPECT_TRUE(engine->status().ok());
    // Also where a command collects the step in flight.
    if (good % 2 == 0) {
      while (engine->Step()) {
      }
    } else {
      EXPECT_FALSE(engine->SwitchWeights(TinyWeights(13, 1), InFlight::kContinue).ok());
    }
    EXPECT_EQ(engine->status().message(), "the device is lost");
    EXPECT_TRUE(sink->samples.finished() == 2 || !sink->failure.empty());
    EXPECT_EQ(other->failure, "the engine has failed: the device is lost");
    EXPECT_TRUE(engine->idle());
    EXPECT_EQ(engine->stats().pages_used, 0);
    EXPECT_FALSE(engine->Step());
  }
}

TEST_F(AheadTest, AnEngineMayEndWithAStepInFlight) {
  const auto engine = MakeEngine(TinyWeights(12), true);
  auto sink = std::make_shared<RecordingSink>();
  engine->Submit(TinyGroup(1, 10, 2, 50), sink);
  for (int step = 0; step < 5; ++step) ASSERT_TRUE(engine->Step());
  engine->Cancel(sink.get(), 1, 1);
}

}  // namespace
}  // namespace lockstep
