#include "rollout_server/decode_loop.h"

#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "rollout_server/cpu_backend.h"
#include "rollout_server/late_backend.h"
#include "rollout_server/test_support.h"

namespace lockstep {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(120);

// A sink that other threads may look at.
class SharedSink : public ResultSink {
 public:
  void Push(v1::GenerateResponse response) override {
    const std::lock_guard lock(mutex_);
    samples_.Add(response);
  }
  bool Full() const override { return false; }
  void Fail(const std::string&) override {}
  Samples Copy() const {
    const std::lock_guard lock(mutex_);
    return samples_;
  }

 private:
  mutable std::mutex mutex_;
  Samples samples_;
};

class DecodeLoopTest : public ::testing::Test {
 protected:
  // late: steps are launched ahead, as on a device.
  std::unique_ptr<DecodeLoop> MakeLoop(int64_t pages, bool late = false) {
    std::unique_ptr<StepBackend> backend = MakeCpuBackend(TinyConfig(), DType::kF16, pages, ops_.get());
    if (late) backend = std::make_unique<LateBackend>(std::move(backend));
    auto engine =
        std::make_unique<BatchEngine>(BatchEngineOptions{.limits = {.max_decode_rows = 16, .prefill_chunk_tokens = 32}},
                                      std::move(backend), TinyWeights(30), &metrics_);
    return std::make_unique<DecodeLoop>(std::move(engine), &metrics_);
  }
  static void Submit(DecodeLoop& loop, v1::Group group, std::shared_ptr<ResultSink> sink) {
    loop.Post([group = std::move(group), sink = std::move(sink)](BatchEngine& engine) { engine.Submit(group, sink); });
  }

  std::unique_ptr<Ops> ops_ = MakeCpuOps(Numerics::kMatched, 1);
  MetricsRegistry registry_{"rollout"};
  RolloutMetrics metrics_{&registry_};
};

class DecodeLoopManyTest : public DecodeLoopTest, public ::testing::WithParamInterface<bool> {};
INSTANTIATE_TEST_SUITE_P(Backends, DecodeLoopManyTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Late" : "Cpu"; });

TEST_P(DecodeLoopManyTest, ManyThreadsSubmitCancelAndFlipAndEachTokenHasTheLogProbOfItsVersion) {
  auto loop = MakeLoop(40, /*late=*/GetParam());
  constexpr uint64_t kVersions = 4;
  std::vector<std::shared_ptr<SharedSink>> sinks;
  for (int i = 0; i < 3; ++i) sinks.push_back(std::make_shared<SharedSink>());
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < sinks.size(); ++t) {
    threads.emplace_back([&loop, &sinks, t] {
      for (uint64_t g = 1; g <= 8; ++g) Submit(*loop, TinyGroup(100 * t + g, 17, 2, 48), sinks[t]);
      loop->Post([sink = sinks[t], t](BatchEngine& engine) { engine.Cancel(sink.get(), 100 * t + 8, 1); });
    });
  }
  threads.emplace_back([&loop] {
    for (uint64_t version = 1; version <= kVersions; ++version) {
      const auto in_flight = version % 2 == 0 ? "finish" : "continue";
      EXPECT_TRUE(loop->Flip(TinyWeights(30 + version, version), in_flight, kPatience).ok());
    }
  });
  threads.emplace_back([&loop] {
    for (int i = 0; i < 200; ++i) EXPECT_LE(loop->stats().pages_used, 40);
  });
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(loop->WaitUntilIdle(kPatience));
  EXPECT_EQ(loop->stats().pages_used, 0);
  EXPECT_EQ(loop->stats().weight_version, kVersions);
  EXPECT_EQ(loop->stats().steps_ahead > 0, GetParam());
  std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 1);
  for (const auto& sink : sinks) {
    const Samples samples = sink->Copy();
    EXPECT_EQ(samples.finished(), 16u);
    EXPECT_EQ(samples.credits(), 8u);
    for (const auto& [id, sample] : samples.all()) {
      if (sample.finish_reason == v1::FINISH_REASON_CANCELLED || sample.tokens.empty()) continue;
      for (uint64_t version = 0; version <= kVersions; ++version) {
        const std::vector<float> expected = TrainingLogProbs(*TinyWeights(30 + version, version), ops.get(),
                                                             TinyPrompt(id.first, 17), sample.tokens, 1);
        for (size_t i = 0; i < sample.tokens.size(); ++i) {
          if (sample.versions[i] == version) {
            EXPECT_EQ(sample.log_probs[i], expected[i]);
          }
        }
      }
    }
  }
}

TEST_F(DecodeLoopTest, AFlipThatComesTooLateLeavesTheOldWeights) {
  auto loop = MakeLoop(40);
  std::mutex gate;
  gate.lock();
  loop->Post([&gate](BatchEngine&) { const std::lock_guard wait(gate); });
  const absl::Status late = loop->Flip(TinyWeights(31, 1), "continue", absl::Milliseconds(20)).status();
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
  gate.unlock();
  ASSERT_TRUE(loop->WaitUntilIdle(kPatience));
  EXPECT_EQ(loop->stats().weight_version, 0u);
}

// A CPU backend whose device is lost without a step.
class IdleBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  absl::Status Check() override { return absl::InternalError("the device is lost"); }
};

TEST_F(DecodeLoopTest, ADeviceThatIsLostWhileNothingIsComputedIsNoticed) {
  auto backend = std::make_unique<IdleBackend>(MakeCpuBackend(TinyConfig(), DType::kF16, 40, ops_.get()));
  auto engine =
      std::make_unique<BatchEngine>(BatchEngineOptions{.limits = {.max_decode_rows = 16, .prefill_chunk_tokens = 32}},
                                    std::move(backend), TinyWeights(30), &metrics_);
  std::promise<absl::Status> failed;
  std::future<absl::Status> failure = failed.get_future();
  DecodeLoop loop(std::move(engine), &metrics_, [&failed](const absl::Status& status) { failed.set_value(status); });
  ASSERT_EQ(failure.wait_for(std::chrono::seconds(120)), std::future_status::ready);
  EXPECT_EQ(failure.get().message(), "the device is lost");
}

TEST_F(DecodeLoopTest, EndsWithSamplesInFlight) {
  for (const bool late : {false, true}) {
    auto loop = MakeLoop(100, late);
    auto sink = std::make_shared<SharedSink>();
    Submit(*loop, TinyGroup(1, 10, 4, 900), sink);
    loop.reset();
    EXPECT_LT(sink->Copy().finished(), 5u);
  }
}

}  // namespace
}  // namespace lockstep
