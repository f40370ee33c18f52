#include "rollout_server/batch_engine.h"

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "rollout_server/cpu_backend.h"
#include "rollout_server/test_support.h"

namespace lockstep {
namespace {

constexpr int64_t kPlentyOfPages = 2000;

class BatchEngineTest : public ::testing::Test {
 protected:
  std::unique_ptr<BatchEngine> MakeEngine(std::shared_ptr<const Weights> weights, int64_t pages = kPlentyOfPages,
                                          SchedulerLimits limits = {.max_decode_rows = 32,
                                                                    .prefill_chunk_tokens = 64}) {
    auto backend = MakeCpuBackend(weights->config, weights->dtype, pages, ops_.get());
    return std::make_unique<BatchEngine>(BatchEngineOptions{.limits = limits}, std::move(backend), std::move(weights),
                                         &metrics_);
  }

  // Steps until nothing is in flight; the bound is far above what any test needs.
  void RunToEnd(BatchEngine& engine) {
    for (int step = 0; step < 100'000; ++step) {
      if (!engine.Step()) break;
    }
    ASSERT_TRUE(engine.idle()) << "the engine stands still";
    EXPECT_EQ(engine.stats().pages_used, 0) << "every page is free again";
  }

  // What group `group` gives when it runs alone.
  Samples RunAlone(std::shared_ptr<const Weights> weights, const v1::Group& group) {
    auto engine = MakeEngine(std::move(weights));
    auto sink = std::make_shared<RecordingSink>();
    engine->Submit(group, sink);
    RunToEnd(*engine);
    return sink->samples;
  }

  std::unique_ptr<Ops> ops_ = MakeCpuOps(Numerics::kMatched, 1);
  MetricsRegistry registry_{"rollout"};
  RolloutMetrics metrics_{&registry_};
  std::shared_ptr<RecordingSink> sink_ = std::make_shared<RecordingSink>();
};

std::vector<int32_t> PromptOf(const v1::Group& group) {
  return {group.prompt_token_ids().begin(), group.prompt_token_ids().end()};
}

TEST_F(BatchEngineTest, ASampleDoesNotDependOnBatchChunkPoolOrPreemption) {
  const auto weights = TinyWeights(1);
  std::vector<v1::Group> groups;
  for (uint64_t g = 1; g <= 12; ++g) groups.push_back(TinyGroup(g, 3 + 11 * static_cast<int64_t>(g), 3, 40));
  std::vector<Samples> alone;
  for (const v1::Group& group : groups) alone.push_back(RunAlone(weights, group));
  struct Setting {
    int64_t pages, rows, chunk;
  };
  uint64_t preemptions = 0;
  for (const Setting& setting : {Setting{kPlentyOfPages, 32, 64}, Setting{14, 7, 5}, Setting{20, 3, 16},
                                 Setting{kPlentyOfPages, 1, 1}, Setting{16, 64, 333}}) {
    auto engine =
        MakeEngine(weights, setting.pages, {.max_decode_rows = setting.rows, .prefill_chunk_tokens = setting.chunk});
    auto sink = std::make_shared<RecordingSink>();
    for (const v1::Group& group : groups) engine->Submit(group, sink);
    RunToEnd(*engine);
    preemptions += engine->stats().preemptions;
    for (size_t g = 0; g < groups.size(); ++g) {
      for (uint32_t s = 0; s < 3; ++s) {
        const uint64_t id = groups[g].group_id();
        EXPECT_TRUE(sink->samples.at(id, s).SameDraws(alone[g].at(id, s)))
            << "group " << id << " sample " << s << " with " << setting.pages << " pages, " << setting.rows
            << " rows, chunks of " << setting.chunk;
      }
    }
    EXPECT_EQ(sink->samples.credits(), groups.size());
  }
  EXPECT_GT(preemptions, 0u) << "the small pools were not small enough to prove anything";
}

TEST_F(BatchEngineTest, SamplesOfAGroupDifferAndARetryRepeatsThem) {
  const auto weights = TinyWeights(2);
  v1::Group group = TinyGroup(9, 20, 4, 30);
  const Samples first = RunAlone(weights, group);
  EXPECT_NE(first.at(9, 0).tokens, first.at(9, 1).tokens);
  group.set_attempt(2);
  group.add_sample_indices(3);
  const Samples retry = RunAlone(weights, group);
  EXPECT_EQ(retry.size(), 1u);
  EXPECT_TRUE(retry.at(9, 3).SameDraws(first.at(9, 3)));
}

TEST_F(BatchEngineTest, LogProbsAreTheBitsOfTheTrainingForward) {
  for (DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (float temperature : {1.0f, 0.6f}) {
      const auto weights = TinyWeights(3, 0, dtype);
      v1::Group group = TinyGroup(5, 37, 3, 50);
      group.mutable_sampling()->set_temperature(temperature);
      const Samples samples = RunAlone(weights, group);
      for (const auto& [id, sample] : samples.all()) {
        ASSERT_EQ(sample.tokens.size(), 50u);
        EXPECT_EQ(sample.log_probs, TrainingLogProbs(*weights, ops_.get(), PromptOf(group), sample.tokens, temperature))
            << DTypeName(dtype) << " at temperature " << temperature;
      }
    }
  }
}

TEST_F(BatchEngineTest, AHundredLongPromptsOnATinyPoolAllFinish) {
  const auto weights = TinyWeights(4);
  auto engine = MakeEngine(weights, 12, {.max_decode_rows = 16, .prefill_chunk_tokens = 48});
  for (uint64_t g = 0; g < 100; ++g) engine->Submit(TinyGroup(g, 100 + static_cast<int64_t>(g % 50), 2, 30), sink_);
  RunToEnd(*engine);
  EXPECT_EQ(sink_->samples.finished(), 200u);
  EXPECT_EQ(sink_->samples.credits(), 100u);
  EXPECT_GT(engine->stats().preemptions, 0u);
  for (const auto& [id, sample] : sink_->samples.all()) EXPECT_EQ(sample.tokens.size(), 30u);
}

TEST_F(BatchEngineTest, APromptIsPrefilledOnceForItsSamples) {
  RunAlone(TinyWeights(5), TinyGroup(1, 45, 8, 20));
  EXPECT_EQ(metrics_.prompt_tokens.value(), 45);
  EXPECT_EQ(metrics_.generated_tokens.value(), 8 * 20);
}

TEST_F(BatchEngineTest, StopTokensEndASampleAndAreReported) {
  const auto weights = TinyWeights(6);
  v1::Group group = TinyGroup(2, 10, 1, 60);
  const Received free_run = RunAlone(weights, group).at(2, 0);
  const int32_t stop = free_run.tokens[20];
  size_t expected = 0;
  while (free_run.tokens[expected] != stop) ++expected;
  group.mutable_sampling()->add_stop_token_ids(stop);
  const Received stopped = RunAlone(weights, group).at(2, 0);
  EXPECT_EQ(stopped.finish_reason, v1::FINISH_REASON_STOP);
  EXPECT_EQ(stopped.tokens.size(), expected + 1);
  EXPECT_EQ(stopped.tokens.back(), stop);
  EXPECT_EQ(free_run.finish_reason, v1::FINISH_REASON_LENGTH);
}

TEST_F(BatchEngineTest, CancelFreesThePagesAtOnceAndReturnsTheCredit) {
  auto engine = MakeEngine(TinyWeights(7));
  engine->Submit(TinyGroup(1, 40, 4, 500), sink_);
  engine->Submit(TinyGroup(2, 40, 1, 20), sink_);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(engine->Step());
  const int64_t used = engine->stats().pages_used;
  engine->Cancel(sink_.get(), 1, /*attempt=*/7);
  EXPECT_EQ(engine->stats().pages_used, used) << "another attempt is not this one";
  engine->Cancel(sink_.get(), 1, 1);
  EXPECT_LT(engine->stats().pages_used, used);
  EXPECT_EQ(sink_->samples.at(1, 3).finish_reason, v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(sink_->samples.credits(), 1u);
  RunToEnd(*engine);
  EXPECT_EQ(sink_->samples.at(2, 0).finish_reason, v1::FINISH_REASON_LENGTH);
}

TEST_F(BatchEngineTest, AClosedConsumerGetsNothingMoreAndHoldsNothing) {
  auto engine = MakeEngine(TinyWeights(7));
  engine->Submit(TinyGroup(1, 40, 4, 500), sink_);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(engine->Step());
  engine->Close(sink_.get());
  EXPECT_TRUE(engine->idle());
  EXPECT_EQ(engine->stats().pages_used, 0);
  EXPECT_EQ(sink_->samples.finished(), 0u);
}

TEST_F(BatchEngineTest, OnlyTheNewestAttemptRuns) {
  auto engine = MakeEngine(TinyWeights(8));
  v1::Group group = TinyGroup(1, 10, 1, 200);
  group.set_attempt(2);
  engine->Submit(group, sink_);
  engine->Step();
  group.set_attempt(1);
  engine->Submit(group, sink_);
  ASSERT_EQ(sink_->samples.refused().size(), 1u);
  EXPECT_EQ(sink_->samples.refused()[0].reason(), v1::GroupRefused::REASON_INVALID);
  group.set_attempt(2);
  engine->Submit(group, sink_);
  EXPECT_EQ(sink_->samples.refused().size(), 2u) << "a duplicate on the same stream";
  auto second_stream = std::make_shared<RecordingSink>();
  group.set_attempt(3);
  engine->Submit(group, second_stream);
  EXPECT_EQ(sink_->samples.at(1, 0).finish_reason, v1::FINISH_REASON_CANCELLED);
  RunToEnd(*engine);
  EXPECT_EQ(second_stream->samples.at(1, 0).finish_reason, v1::FINISH_REASON_LENGTH);
}

TEST_F(BatchEngineTest, RefusesAGroupThatNeedsNewerWeights) {
  auto engine = MakeEngine(TinyWeights(9));
  v1::Group group = TinyGroup(1, 10, 1, 5);
  group.set_min_weight_epoch(1);
  group.set_min_weight_version(3);
  engine->Submit(group, sink_);
  ASSERT_EQ(sink_->samples.refused().size(), 1u);
  EXPECT_EQ(sink_->samples.refused()[0].reason(), v1::GroupRefused::REASON_NOT_READY);
  ASSERT_TRUE(engine->SwitchWeights(TinyWeights(10, 3), InFlight::kFinish).ok());
  engine->Submit(group, sink_);
  RunToEnd(*engine);
  EXPECT_EQ(sink_->samples.at(1, 0).versions, std::vector<uint64_t>(5, 3));
}

TEST_F(BatchEngineTest, NonFiniteLogitsEndTheSampleAndNobodyElse) {
  auto weights = std::make_shared<Weights>(TinyConfig(), DType::kF16);
  std::vector<float> arena(static_cast<size_t>(weights->layout.total_size));
  InitializeArena(weights->config, 11, 0.25f, arena.data());
  constexpr int32_t kPoison = 96;
  // The embedding is the first parameter; its last row becomes NaN.
  for (int64_t i = 0; i < 32; ++i) arena[static_cast<size_t>(kPoison * 32 + i)] = std::nanf("");
  weights->SetFromArena(arena.data());
  auto engine = MakeEngine(weights);
  v1::Group bad = TinyGroup(1, 10, 3, 20);
  bad.set_prompt_token_ids(4, kPoison);
  v1::Group good = TinyGroup(2, 10, 1, 1);
  for (int i = 0; i < 10; ++i) good.set_prompt_token_ids(i, i);
  engine->Submit(bad, sink_);
  engine->Submit(good, sink_);
  RunToEnd(*engine);
  for (uint32_t s = 0; s < 3; ++s) {
    EXPECT_EQ(sink_->samples.at(1, s).finish_reason, v1::FINISH_REASON_NONFINITE);
    EXPECT_TRUE(sink_->samples.at(1, s).tokens.empty());
  }
  EXPECT_EQ(sink_->samples.at(2, 0).finish_reason, v1::FINISH_REASON_LENGTH);
  EXPECT_TRUE(std::isfinite(sink_->samples.at(2, 0).log_probs[0]));
  EXPECT_EQ(metrics_.nonfinite_logits.value(), 1);
  EXPECT_EQ(metrics_.nonfinite.value(), 3);
}

TEST_F(BatchEngineTest, AConsumerThatDoesNotReadStopsOnlyItsOwnSamples) {
  auto engine = MakeEngine(TinyWeights(12));
  auto slow = std::make_shared<RecordingSink>();
  slow->full = true;
  engine->Submit(TinyGroup(1, 10, 2, 50), slow);
  engine->Submit(TinyGroup(2, 10, 2, 50), sink_);
  while (engine->Step()) {
  }
  EXPECT_EQ(sink_->samples.finished(), 2u);
  EXPECT_EQ(slow->samples.size(), 0u);
  EXPECT_FALSE(engine->idle());
  slow->full = false;
  RunToEnd(*engine);
  EXPECT_EQ(slow->samples.finished(), 2u);
}

TEST_F(BatchEngineTest, AConsumerThatNeverReadsLosesItsSamples) {
  BatchEngine engine({.limits = {.max_decode_rows = 8, .prefill_chunk_tokens = 64}, .stall_limit_seconds = 0},
                     MakeCpuBackend(TinyConfig(), DType::kF16, 100, ops_.get()), TinyWeights(12), &metrics_);
  engine.Submit(TinyGroup(1, 10, 2, 50), sink_);
  ASSERT_TRUE(engine.Step());
  sink_->full = true;
  for (int step = 0; step < 1'000'000 && !engine.idle(); ++step) engine.Step();
  EXPECT_TRUE(engine.idle());
  EXPECT_FALSE(sink_->failure.empty());
  EXPECT_EQ(engine.stats().pages_used, 0);
}

// A CPU backend whose device is lost before step `good`.
class LostBackend final : public ForwardingBackend {
 public:
  LostBackend(std::unique_ptr<StepBackend> backend, int good) : ForwardingBackend(std::move(backend)), good_(good) {}
  absl::Status Collect(StepOutput* output) override {
    return good_-- > 0 ? ForwardingBackend::Collect(output) : absl::InternalError("the device is lost");
  }

 private:
  int good_;
};

TEST_F(BatchEngineTest, ALostDeviceEndsEveryConsumerAndNothingIsComputedAnyMore) {
  auto lost = std::make_unique<LostBackend>(MakeCpuBackend(TinyConfig(), DType::kF16, 100, ops_.get()), 3);
  BatchEngine engine({.limits = {.max_decode_rows = 8, .prefill_chunk_tokens = 64}}, std::move(lost), TinyWeights(12),
                     &metrics_);
  auto other = std::make_shared<RecordingSink>();
  engine.Submit(TinyGroup(1, 10, 2, 50), sink_);
  engine.Submit(TinyGroup(2, 10, 2, 50), other);
  for (int step = 0; step < 3; ++step) ASSERT_TRUE(engine.Step());
  EXPECT_TRUE(engine.status().ok());
  EXPECT_FALSE(engine.Step());
  EXPECT_EQ(engine.status().message(), "the device is lost");
  for (const auto& sink : {sink_, other}) EXPECT_EQ(sink->failure, "the engine has failed: the device is lost");
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.stats().pages_used, 0);
  auto late = std::make_shared<RecordingSink>();
  engine.Submit(TinyGroup(3, 10, 2, 50), late);
  EXPECT_FALSE(late->failure.empty());
  EXPECT_FALSE(engine.SwitchWeights(TinyWeights(13, 1), InFlight::kContinue).ok());
}

// --- Weight switches -----------------------------------------------------------------------------------------------

// Runs a group of 3 for `before` steps under weights 0, switches to version 1, and runs to the end together with a
// second group that starts after the switch.
class SwitchTest : public BatchEngineTest {
 protected:
  void Run(InFlight in_flight, int before = 12) {
    auto engine = MakeEngine(old_);
    engine->Submit(group_, sink_);
    for (int i = 0; i < before; ++i) ASSERT_TRUE(engine->Step());
    ASSERT_TRUE(engine->SwitchWeights(new_, in_flight).ok());
    engine->Submit(later_, sink_);
    RunToEnd(*engine);
    for (const auto& [id, sample] : sink_->samples.all()) {
      EXPECT_EQ(sample.finish_reason, v1::FINISH_REASON_LENGTH);
      EXPECT_TRUE(std::is_sorted(sample.versions.begin(), sample.versions.end()));
    }
    EXPECT_EQ(sink_->samples.at(2, 0).versions, std::vector<uint64_t>(20, 1));
    EXPECT_EQ(sink_->samples.at(2, 0).log_probs,
              TrainingLogProbs(*new_, ops_.get(), PromptOf(later_), sink_->samples.at(2, 0).tokens, 1));
  }
  // Tokens of version 0 at the head of the sample.
  static size_t OldTokens(const Received& sample) {
    return static_cast<size_t>(std::count(sample.versions.begin(), sample.versions.end(), uint64_t{0}));
  }
  std::vector<float> LogProbs(const Weights& weights, const Received& sample) {
    return TrainingLogProbs(weights, ops_.get(), PromptOf(group_), sample.tokens, 1);
  }

  const std::shared_ptr<const Weights> old_ = TinyWeights(20);
  const std::shared_ptr<const Weights> new_ = TinyWeights(21, 1);
  const v1::Group group_ = TinyGroup(1, 37, 3, 40);
  const v1::Group later_ = TinyGroup(2, 37, 1, 20);
};

TEST_F(SwitchTest, FinishKeepsTheOldWeightsForWhatIsInFlight) {
  Run(InFlight::kFinish);
  const Samples alone = RunAlone(old_, group_);
  for (uint32_t s = 0; s < 3; ++s) {
    const Received& sample = sink_->samples.at(1, s);
    EXPECT_EQ(OldTokens(sample), 40u);
    EXPECT_TRUE(sample.SameDraws(alone.at(1, s)));
    EXPECT_FALSE(sample.stale_kv_cache);
  }
}

TEST_F(SwitchTest, ContinueGivesTheLogProbsOfAFreshRecomputeWithTheNewWeights) {
  Run(InFlight::kContinue);
  for (uint32_t s = 0; s < 3; ++s) {
    const Received& sample = sink_->samples.at(1, s);
    const size_t old_tokens = OldTokens(sample);
    ASSERT_GT(old_tokens, 0u);
    ASSERT_LT(old_tokens, 40u);
    const std::vector<float> under_old = LogProbs(*old_, sample), under_new = LogProbs(*new_, sample);
    for (size_t i = 0; i < 40; ++i) {
      EXPECT_EQ(sample.log_probs[i], i < old_tokens ? under_old[i] : under_new[i]) << "token " << i;
    }
    EXPECT_FALSE(sample.stale_kv_cache);
  }
}

TEST_F(SwitchTest, ContinueWithTheOldCacheIsRecordedWithTheSample) {
  Run(InFlight::kContinueStaleKv);
  for (uint32_t s = 0; s < 3; ++s) {
    const Received& sample = sink_->samples.at(1, s);
    EXPECT_TRUE(sample.stale_kv_cache);
    const size_t old_tokens = OldTokens(sample);
    ASSERT_GT(old_tokens, 0u);
    const std::vector<float> under_old = LogProbs(*old_, sample), under_new = LogProbs(*new_, sample);
    int different = 0;
    for (size_t i = 0; i < 40; ++i) {
      if (i < old_tokens) {
        EXPECT_EQ(sample.log_probs[i], under_old[i]);
        continue;
      }
      different += sample.log_probs[i] != under_new[i];
    }
    EXPECT_GT(different, 0) << "the old cache leaves no trace: this test could not see a stale cache";
  }
  EXPECT_FALSE(sink_->samples.at(2, 0).stale_kv_cache);
}

TEST_F(SwitchTest, RestartBeginsTheSampleAnew) {
  Run(InFlight::kRestart, /*before=*/20);
  const Samples alone = RunAlone(new_, group_);
  for (uint32_t s = 0; s < 3; ++s) {
    const Received& sample = sink_->samples.at(1, s);
    EXPECT_EQ(sample.restarts, 1);
    EXPECT_EQ(OldTokens(sample), 0u);
    EXPECT_TRUE(sample.SameDraws(alone.at(1, s)));
  }
}

TEST_F(SwitchTest, APromptInPrefillNeverMixesVersions) {
  for (InFlight in_flight : {InFlight::kFinish, InFlight::kContinue, InFlight::kContinueStaleKv, InFlight::kRestart}) {
    auto sink = std::make_shared<RecordingSink>();
    auto engine = MakeEngine(old_, kPlentyOfPages, {.max_decode_rows = 8, .prefill_chunk_tokens = 10});
    engine->Submit(group_, sink);
    ASSERT_TRUE(engine->Step());
    ASSERT_TRUE(engine->SwitchWeights(new_, in_flight).ok());
    RunToEnd(*engine);
    const std::shared_ptr<const Weights>& expected = in_flight == InFlight::kFinish ? old_ : new_;
    for (uint32_t s = 0; s < 3; ++s) {
      EXPECT_EQ(sink->samples.at(1, s).log_probs, LogProbs(*expected, sink->samples.at(1, s)));
      EXPECT_FALSE(sink->samples.at(1, s).stale_kv_cache);
    }
  }
}

TEST_F(SwitchTest, SwitchesUnderPreemptionKeepVersionsAndLogProbsTogether) {
  for (InFlight in_flight : {InFlight::kFinish, InFlight::kContinue, InFlight::kRestart}) {
    auto sink = std::make_shared<RecordingSink>();
    auto engine = MakeEngine(old_, 14, {.max_decode_rows = 8, .prefill_chunk_tokens = 16});
    for (uint64_t g = 1; g <= 6; ++g) engine->Submit(TinyGroup(g, 20 + static_cast<int64_t>(g), 3, 60), sink);
    std::vector<std::shared_ptr<const Weights>> sets = {old_};
    for (uint64_t version = 1; version <= 6; ++version) {
      for (int i = 0; i < 25; ++i) engine->Step();
      sets.push_back(TinyWeights(20 + version, version));
      ASSERT_TRUE(engine->SwitchWeights(sets.back(), in_flight).ok());
    }
    RunToEnd(*engine);
    EXPECT_GT(engine->stats().preemptions, 0u);
    ASSERT_EQ(sink->samples.finished(), 18u);
    for (const auto& [id, sample] : sink->samples.all()) {
      std::vector<std::vector<float>> under;
      for (const auto& set : sets) {
        under.push_back(TrainingLogProbs(*set, ops_.get(), TinyPrompt(id.first, 20 + static_cast<int64_t>(id.first)),
                                         sample.tokens, 1));
      }
      for (size_t i = 0; i < sample.tokens.size(); ++i) EXPECT_EQ(sample.log_probs[i], under[sample.versions[i]][i]);
    }
  }
}

TEST_F(SwitchTest, OldOrForeignWeightsAreRefusedAndTheHeldOnesStay) {
  auto engine = MakeEngine(new_);
  EXPECT_EQ(engine->SwitchWeights(old_, InFlight::kFinish).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(engine->SwitchWeights(new_, InFlight::kFinish).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(engine->SwitchWeights(TinyWeights(22, 9, DType::kBF16), InFlight::kFinish).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine->current_weights().version, 1u);
}

}  // namespace
}  // namespace lockstep
