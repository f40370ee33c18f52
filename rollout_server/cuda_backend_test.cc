// The engine over the device's backend, its kernels compiled for the CPU, against the engine over the CPU's: in FP32
// under matched numerics the same tokens, log-probs and routing to the bit.
#include "rollout_server/cuda_backend.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "engine/cuda/device_weights.h"
#include "engine/cuda/errors/errors.h"
#include "engine/cuda/serving.h"
#include "rollout_server/batch_engine.h"
#include "rollout_server/cpu_backend.h"
#include "rollout_server/test_support.h"
#include "weight_sync/bucket_plan.h"

namespace lockstep {
namespace {

// Heads that the device's attention has kernels for.
ModelConfig Fitting(ModelConfig config) {
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 16;
  return config;
}

std::shared_ptr<Weights> MakeWeights(const ModelConfig& config, DType dtype, uint64_t seed, uint64_t version = 0) {
  auto weights = std::make_shared<Weights>(config, dtype);
  std::vector<float> arena(static_cast<size_t>(weights->layout.total_size));
  InitializeArena(config, seed, 0.25f, arena.data());
  weights->SetFromArena(arena.data());
  weights->version = version;
  weights->epoch = version == 0 ? 0 : 1;
  return weights;
}

struct Setting {
  int64_t pages = 200;  // of the CPU; 0: on the device as many as `rows` sequences take
  int64_t rows = 8;
  int64_t chunk = 24;
  bool ahead = true;
};

class CudaBackendTest : public ::testing::Test {
 protected:
  static DeviceBackendOptions OptionsOf(const Weights& weights, const Setting& setting) {
    DeviceBackendOptions options;
    options.config = weights.config;
    options.dtype = weights.dtype;
    options.max_decode_rows = setting.rows;
    options.prefill_chunk_tokens = setting.chunk;
    options.max_sequence_tokens = 128;
    return options;
  }
  std::unique_ptr<BatchEngine> MakeEngine(bool on_device, std::shared_ptr<const Weights> weights,
                                          const Setting& setting) {
    std::unique_ptr<StepBackend> backend;
    if (on_device) {
      DeviceBackendOptions options = OptionsOf(*weights, setting);
      options.kv_cache_mib = setting.pages == 0 ? 0 : 1;
      auto made = MakeCudaStepBackend(options, {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
      EXPECT_TRUE(made.ok()) << made.status();
      backend = *std::move(made);
    } else {
      backend = MakeCpuBackend(weights->config, weights->dtype, setting.pages, ops_.get());
    }
    EXPECT_TRUE(backend->Prepare(weights).ok());
    backend_ = backend.get();
    return std::make_unique<BatchEngine>(
        BatchEngineOptions{.limits = {.max_decode_rows = setting.rows, .prefill_chunk_tokens = setting.chunk},
                           .launch_ahead = setting.ahead},
        std::move(backend), std::move(weights), &metrics_);
  }
  // A set of `weights` that an update has filled where the backend computes.
  static std::shared_ptr<const WeightSet> Filled(StepBackend& backend, const Weights& weights) {
    const BucketPlan plan = *MakeBucketPlan(weights.layout, weights.dtype, 5000);
    auto shadow = backend.device_shadow()(plan, {weights.epoch, weights.version});
    EXPECT_TRUE(shadow.ok()) << shadow.status();
    if (!shadow.ok()) return nullptr;
    const absl::Status filled = (*shadow)->Fill([&](uint64_t bucket, void* memory, uint64_t bytes) {
      std::string wire(bytes, '\0');  // LoadBucket writes tensors, and a device's memory is none
      LoadBucket(plan, plan.buckets[bucket], weights, wire.data());
      std::memcpy(memory, wire.data(), bytes);
      return absl::OkStatus();
    });
    EXPECT_TRUE(filled.ok()) << filled;
    return (*shadow)->Release();
  }
  // Groups of all kinds of transforms; `switched` (may be null) becomes current after kStepsBefore steps, as the host
  // has it, or as an update fills it on the device.
  static constexpr uint64_t kStepsBefore = 8;
  Samples Run(bool on_device, const std::shared_ptr<const Weights>& weights, const Setting& setting,
              const std::shared_ptr<const Weights>& switched = nullptr, bool fills_device = false) {
    auto engine = MakeEngine(on_device, weights, setting);
    auto sink = std::make_shared<RecordingSink>();
    for (uint64_t g = 1; g <= 5; ++g) {
      v1::Group group = TinyGroup(g, 5 + 9 * static_cast<int64_t>(g), g == 4 ? 1 : 3, 10);
      group.mutable_sampling()->set_temperature(g == 4 ? 0.0f : 0.8f);
      if (g == 2) group.mutable_sampling()->set_top_k(7);
      group.set_routing(weights->config.num_experts > 0 && g % 2 == 1);
      engine->Submit(std::move(group), sink);
    }
    while (engine->stats().steps + 1 < kStepsBefore) EXPECT_TRUE(engine->Step());
    engine->Drain();
    if (engine->stats().steps < kStepsBefore) {
      EXPECT_TRUE(engine->Step());
    }
    if (switched != nullptr) {
      const std::shared_ptr<const WeightSet> set = fills_device ? Filled(*backend_, *switched) : switched;
      EXPECT_TRUE(engine->SwitchWeights(set, InFlight::kContinue).ok());
    }
    while (engine->Step()) {
    }
    EXPECT_TRUE(engine->status().ok()) << engine->status();
    EXPECT_TRUE(engine->idle());
    return sink->samples;
  }
  static void ExpectTheSame(const Samples& device, const Samples& cpu) {
    ASSERT_EQ(device.size(), cpu.size());
    EXPECT_EQ(device.finished(), cpu.finished());
    for (const auto& [id, expected] : cpu.all()) {
      const Received& got = device.at(id.first, id.second);
      const std::string where = "group " + std::to_string(id.first) + " sample " + std::to_string(id.second);
      EXPECT_EQ(got.tokens, expected.tokens) << where;
      EXPECT_EQ(got.versions, expected.versions) << where;
      EXPECT_EQ(got.prompt_routing, expected.prompt_routing) << where;
      EXPECT_EQ(got.routing, expected.routing) << where;
      if (id.first == 2) continue;  // top_k: the last bit of the log-prob (kernels.h)
      EXPECT_EQ(got.log_probs, expected.log_probs) << where;
    }
  }

  StepBackend* backend_ = nullptr;  // of the last engine
  std::unique_ptr<Ops> ops_ = MakeCpuOps(Numerics::kMatched, 1);
  MetricsRegistry registry_{"rollout"};
  RolloutMetrics metrics_{&registry_};
};

TEST_F(CudaBackendTest, DrawsWhatTheCpuDraws) {
  const auto weights = MakeWeights(Fitting(TinyConfig()), DType::kF32, 3);
  ExpectTheSame(Run(true, weights, {}), Run(false, weights, {}));
}

TEST_F(CudaBackendTest, ChoosesTheExpertsThatTheCpuChooses) {
  const auto weights = MakeWeights(Fitting(TinyMixtureConfig(4)), DType::kF32, 4);
  ExpectTheSame(Run(true, weights, {}), Run(false, weights, {}));
}

TEST_F(CudaBackendTest, ASwitchInTheMiddleIsTheCpus) {
  const ModelConfig config = Fitting(TinyConfig());
  const auto weights = MakeWeights(config, DType::kF32, 5), next = MakeWeights(config, DType::kF32, 6, 1);
  const Samples device = Run(true, weights, {}, next);
  ExpectTheSame(device, Run(false, weights, {}, next));
  EXPECT_EQ(device.at(1, 0).versions.back(), 1u);
  EXPECT_EQ(device.at(1, 0).versions.front(), 0u);
}

TEST_F(CudaBackendTest, AnUpdateThatFillsDeviceMemoryGivesTheTokensOfOneOverTheHost) {
  for (const ModelConfig& config : {Fitting(TinyConfig()), Fitting(TinyMixtureConfig(4))}) {
    const auto weights = MakeWeights(config, DType::kF32, 5), next = MakeWeights(config, DType::kF32, 6, 1);
    const Samples device = Run(true, weights, {}, next, /*fills_device=*/true);
    ExpectTheSame(device, Run(false, weights, {}, next));
    EXPECT_EQ(device.at(1, 0).versions.back(), 1u);
    EXPECT_EQ(device.at(1, 0).versions.front(), 0u);
  }
}

TEST_F(CudaBackendTest, UpdatesTakeTurnsInTwoSetsOfMemory) {
  const ModelConfig config = Fitting(TinyMixtureConfig(4));
  auto first = MakeWeights(config, DType::kF32, 8);
  auto backend = MakeCudaStepBackend(OptionsOf(*first, {}), {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
  ASSERT_TRUE(backend.ok()) << backend.status();
  ASSERT_TRUE((*backend)->Prepare(first).ok());
  std::shared_ptr<const WeightSet> held = Filled(**backend, *MakeWeights(config, DType::kF32, 9, 1));
  const size_t two = emulation::MemoryInUse();
  ASSERT_TRUE((*backend)->Prepare(held).ok()) << "it is there";
  EXPECT_EQ(emulation::MemoryInUse(), two);
  first.reset();
  for (uint64_t version = 2; version < 5; ++version) {
    held = Filled(**backend, *MakeWeights(config, DType::kF32, 8 + version, version));
    EXPECT_EQ(held->version, version);
    EXPECT_EQ(emulation::MemoryInUse(), two);
  }
  ASSERT_TRUE((*backend)->Prepare(MakeWeights(config, DType::kF32, 20, 6)).ok()) << "one of the host's beside it";
  EXPECT_EQ(emulation::MemoryInUse(), two);
}

TEST_F(CudaBackendTest, AnUpdateForWhichThereIsNoMemoryIsRefusedInOneLine) {
  const ModelConfig config = Fitting(TinyConfig());
  const auto first = MakeWeights(config, DType::kF32, 8);
  auto backend = MakeCudaStepBackend(OptionsOf(*first, {}), {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
  ASSERT_TRUE((*backend)->Prepare(first).ok());
  const BucketPlan plan = *MakeBucketPlan(first->layout, DType::kF32, 4096);
  emulation::SetMemoryLimit(emulation::MemoryInUse() + 1000);
  EXPECT_EQ((*backend)->device_shadow()(plan, {1, 1}).status().code(), absl::StatusCode::kResourceExhausted);
  emulation::SetMemoryLimit(std::numeric_limits<size_t>::max());
  std::vector<std::shared_ptr<const WeightSet>> held;
  for (uint64_t version = 1; version <= kMaxWeightSets; ++version) {
    held.push_back(Filled(**backend, *MakeWeights(config, DType::kF32, 8, version)));
  }
  EXPECT_EQ((*backend)->device_shadow()(plan, {1, 9}).status(),
            absl::ResourceExhaustedError("all 4 sets of weights on the device are in use"));
  held.pop_back();
  EXPECT_TRUE((*backend)->device_shadow()(plan, {1, 9}).ok());
}

TEST_F(CudaBackendTest, ASetOfNeitherMemoryIsRefused) {
  struct Elsewhere : WeightSet {
    using WeightSet::WeightSet;
  };
  const ModelConfig config = Fitting(TinyConfig());
  const auto first = MakeWeights(config, DType::kF32, 8);
  auto backend = MakeCudaStepBackend(OptionsOf(*first, {}), {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
  const auto set = std::make_shared<const Elsewhere>(config, DType::kF32);
  EXPECT_EQ((*backend)->Prepare(set).code(), absl::StatusCode::kInvalidArgument);
  const auto cpu = MakeCpuBackend(config, DType::kF32, 10, ops_.get());
  EXPECT_EQ(cpu->Prepare(set).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cpu->Prepare(Filled(**backend, *first)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cpu->device_shadow(), nullptr);
}

TEST_F(CudaBackendTest, HalfPrecisionDoesNotDependOnTheBatch) {
  const auto weights = MakeWeights(Fitting(TinyConfig()), DType::kF16, 7);
  ExpectTheSame(Run(true, weights, {.rows = 3, .chunk = 5}), Run(true, weights, {}));
}

// --- Steps launched ahead ------------------------------------------------------------------------------------------

// Work waits on the device whenever a step has been launched ahead, and the host has had all that it needs.
TEST_F(CudaBackendTest, TheDeviceHasItsNextStepBeforeTheHostLooksAtTheLast) {
  const auto weights = MakeWeights(Fitting(TinyConfig()), DType::kF16, 20);
  for (const bool ahead : {false, true}) {
    const auto engine = MakeEngine(true, weights, {.ahead = ahead});
    auto sink = std::make_shared<RecordingSink>();
    engine->Submit(TinyGroup(1, 10, 2, 12), sink);
    ASSERT_TRUE(engine->Step());  // the prompt
    for (int step = 0; step < 10; ++step) {
      ASSERT_TRUE(engine->Step());
      EXPECT_EQ(emulation::PendingWork() > 0, ahead);
    }
    ASSERT_TRUE(engine->Step());
    EXPECT_EQ(emulation::PendingWork(), 0u) << "an end that is known is not run into";
    EXPECT_EQ(engine->stats().steps_ahead, ahead ? 10u : 0u);
    EXPECT_TRUE(engine->idle());
  }
}

TEST_F(CudaBackendTest, StepsAheadGiveTheBitsOfStepsOneByOneUnderARandomLoad) {
  const auto weights = MakeWeights(Fitting(TinyMixtureConfig(4)), DType::kF16, 21);
  Samples samples[2];
  EngineStats stats[2];
  for (const bool ahead : {false, true}) {
    const auto engine = MakeEngine(true, weights, {.pages = 0, .rows = 3, .ahead = ahead});
    auto sink = std::make_shared<RecordingSink>();
    for (uint64_t g = 1; g <= 4; ++g) {
      v1::Group group = TinyGroup(g, 20 + 12 * static_cast<int64_t>(g % 3), 3, 20 + static_cast<uint32_t>(3 * g));
      for (int32_t token = 3; token < 97; token += 40) group.mutable_sampling()->add_stop_token_ids(token);
      group.set_routing(g % 2 == 1);
      engine->Submit(std::move(group), sink);
    }
    for (int step = 0; step < 20; ++step) ASSERT_TRUE(engine->Step());
    engine->Cancel(sink.get(), 4, 1);
    while (engine->Step()) {
    }
    ASSERT_TRUE(engine->status().ok()) << engine->status();
    stats[ahead ? 1 : 0] = engine->stats();
    samples[ahead ? 1 : 0] = sink->samples;
  }
  EXPECT_EQ(stats[1].pages_used, 0);
  EXPECT_GT(stats[1].steps_ahead * 3, stats[1].steps);
  int stopped = 0;
  for (const auto& [id, expected] : samples[0].all()) {
    const Received& got = samples[1].at(id.first, id.second);
    EXPECT_EQ(got.finish_reason, expected.finish_reason);
    if (expected.finish_reason == v1::FINISH_REASON_CANCELLED) continue;
    EXPECT_TRUE(got.SameDraws(expected)) << id.first << " " << id.second;
    EXPECT_EQ(got.versions, expected.versions);
    EXPECT_EQ(got.prompt_routing + got.routing, expected.prompt_routing + expected.routing);
    stopped += expected.finish_reason == v1::FINISH_REASON_STOP ? 1 : 0;
  }
  EXPECT_GT(stopped, 0);
}

TEST_F(CudaBackendTest, ASwitchTakesTheStepInFlightWithIt) {
  const ModelConfig config = Fitting(TinyConfig());
  const auto weights = MakeWeights(config, DType::kF16, 22), next = MakeWeights(config, DType::kF16, 23, 1);
  for (InFlight in_flight : {InFlight::kFinish, InFlight::kContinue, InFlight::kContinueStaleKv, InFlight::kRestart}) {
    Samples samples[2];
    for (const bool ahead : {true, false}) {
      const auto engine = MakeEngine(true, weights, {.ahead = ahead});
      auto sink = std::make_shared<RecordingSink>();
      engine->Submit(TinyGroup(1, 20, 3, 10), sink);
      for (int step = 0; step < (ahead ? 5 : 6); ++step) ASSERT_TRUE(engine->Step());
      ASSERT_TRUE(engine->SwitchWeights(next, in_flight).ok());
      engine->Submit(TinyGroup(2, 20, 1, 5), sink);
      while (engine->Step()) {
      }
      ASSERT_TRUE(engine->status().ok()) << engine->status();
      samples[ahead ? 1 : 0] = sink->samples;
    }
    for (const auto& [id, expected] : samples[0].all()) {
      const Received& got = samples[1].at(id.first, id.second);
      EXPECT_TRUE(got.SameDraws(expected)) << id.first << " " << id.second;
      EXPECT_EQ(got.versions, expected.versions);
      EXPECT_EQ(got.stale_kv_cache, expected.stale_kv_cache);
    }
    const auto versions = samples[1].at(1, 0).versions;
    EXPECT_EQ(versions.front(), in_flight == InFlight::kRestart ? 1u : 0u);
    EXPECT_EQ(versions.back(), in_flight == InFlight::kFinish ? 0u : 1u);
  }
}

TEST_F(CudaBackendTest, ADeviceThatFailsInTheMiddleEndsEveryConsumer) {
  const auto weights = MakeWeights(Fitting(TinyConfig()), DType::kF16, 24);
  for (const int skip : {0, 1, 2, 3, 5, 8, 40}) {
    {
      const auto engine = MakeEngine(true, weights, {});
      auto sink = std::make_shared<RecordingSink>(), other = std::make_shared<RecordingSink>();
      engine->Submit(TinyGroup(1, 10, 2, 100), sink);
      engine->Submit(TinyGroup(2, 10, 1, 100), other);
      for (int step = 0; step < 5; ++step) ASSERT_TRUE(engine->Step());
      EXPECT_GT(emulation::PendingWork(), 0u);
      emulation::FailWork(skip, cudaErrorIllegalAddress);
      for (int step = 0; step < 60 && engine->Step(); ++step) {
      }
      EXPECT_FALSE(engine->status().ok());
      EXPECT_FALSE(sink->failure.empty());
      EXPECT_FALSE(other->failure.empty());
      EXPECT_TRUE(engine->idle());
      EXPECT_EQ(engine->stats().pages_used, 0);
    }
    emulation::FailWork(0, cudaSuccess);
  }
}

TEST_F(CudaBackendTest, MemoryOfASetThatNobodyHoldsGoesToTheNext) {
  const ModelConfig config = Fitting(TinyConfig());
  auto first = MakeWeights(config, DType::kF32, 8);
  auto backend = MakeCudaStepBackend(OptionsOf(*first, {}), {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
  ASSERT_TRUE(backend.ok()) << backend.status();
  ASSERT_TRUE((*backend)->Prepare(first).ok());
  const size_t one = emulation::MemoryInUse();
  ASSERT_TRUE((*backend)->Prepare(first).ok());
  EXPECT_EQ(emulation::MemoryInUse(), one) << "a set is brought over once";
  auto second = MakeWeights(config, DType::kF32, 9, 1);
  ASSERT_TRUE((*backend)->Prepare(second).ok());
  const size_t two = emulation::MemoryInUse();
  EXPECT_GT(two, one);
  first.reset();
  ASSERT_TRUE((*backend)->Prepare(MakeWeights(config, DType::kF32, 10, 2)).ok());
  EXPECT_EQ(emulation::MemoryInUse(), two);
}

TEST_F(CudaBackendTest, TakesWhatThePlanSays) {
  const ModelConfig config = Fitting(TinyMixtureConfig(4));
  const auto weights = MakeWeights(config, DType::kF16, 8);
  const cuda::ServingShape shape = {.config = config,
                                    .dtype = DType::kF16,
                                    .max_decode_rows = 8,
                                    .prefill_chunk_tokens = 24,
                                    .max_sequence_tokens = 128};
  const auto pages = cuda::ServingPages(shape, 1, 0);
  ASSERT_TRUE(pages.ok()) << pages.status();
  const size_t before = emulation::MemoryInUse();
  const auto engine = MakeEngine(/*on_device=*/true, weights, {});
  const size_t made = emulation::MemoryInUse() - before;
  EXPECT_EQ(made, cuda::ServingScratchBytes(shape) + cuda::DeviceWeights::Bytes(config, DType::kF16) +
                      static_cast<size_t>(*pages) * cuda::DeviceKv::BytesPerPage(config, DType::kF16));
  auto sink = std::make_shared<RecordingSink>();
  for (uint64_t g = 1; g <= 4; ++g) {
    v1::Group group = TinyGroup(g, 30, 3, 10);
    group.set_routing(true);
    engine->Submit(std::move(group), sink);
  }
  while (engine->Step()) {
  }
  EXPECT_TRUE(engine->status().ok()) << engine->status();
  EXPECT_EQ(emulation::MemoryInUse() - before, made + cuda::ServingStepBytes(shape, /*routing=*/true));
}

TEST_F(CudaBackendTest, LogitsThatAreNotFiniteEndTheirSampleAndNobodyElse) {
  const ModelConfig config = Fitting(TinyConfig());
  auto weights = std::make_shared<Weights>(config, DType::kF32);
  std::vector<float> arena(static_cast<size_t>(weights->layout.total_size));
  InitializeArena(config, 11, 0.25f, arena.data());
  constexpr int32_t kPoison = 96;
  for (int64_t i = 0; i < config.hidden_size; ++i) {
    arena[static_cast<size_t>(kPoison * config.hidden_size + i)] = std::nanf("");
  }
  weights->SetFromArena(arena.data());
  auto engine = MakeEngine(true, weights, {});
  auto sink = std::make_shared<RecordingSink>();
  for (uint64_t g = 1; g <= 3; ++g) {
    v1::Group group = TinyGroup(g, 10, 2, 5);
    for (int i = 0; i < 10; ++i) group.set_prompt_token_ids(i, i + 1);
    if (g == 1) group.set_prompt_token_ids(4, kPoison);
    if (g == 3) {
      group.set_prompt_token_ids(4, kPoison);
      group.mutable_sampling()->set_temperature(0);
    }
    engine->Submit(std::move(group), sink);
  }
  while (engine->Step()) {
  }
  for (const uint64_t g : {1, 3}) {
    for (uint32_t s = 0; s < 2; ++s) {
      EXPECT_EQ(sink->samples.at(g, s).finish_reason, v1::FINISH_REASON_NONFINITE) << g;
      EXPECT_TRUE(sink->samples.at(g, s).tokens.empty()) << g;
    }
  }
  EXPECT_EQ(sink->samples.at(2, 0).finish_reason, v1::FINISH_REASON_LENGTH);
}

TEST_F(CudaBackendTest, WhatDoesNotFitIsOneLine) {
  const auto weights = MakeWeights(Fitting(TinyConfig()), DType::kF32, 12);
  const DeviceBackendOptions options = OptionsOf(*weights, {});
  emulation::SetMemoryLimit(emulation::MemoryInUse() + 100'000);
  const auto backend = MakeCudaStepBackend(options, {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
  emulation::SetMemoryLimit(std::numeric_limits<size_t>::max());
  ASSERT_FALSE(backend.ok());
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kResourceExhausted) << backend.status();
}

// A thread begins with device 0.
TEST_F(CudaBackendTest, EveryThreadUsesTheBackendsDevice) {
  const auto weights = MakeWeights(Fitting(TinyConfig()), DType::kF32, 14);
  emulation::TheDevices().count = 2;
  {
    DeviceBackendOptions options = OptionsOf(*weights, {});
    options.kv_cache_mib = 1;
    options.device = 1;
    auto backend = MakeCudaStepBackend(options, {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
    ASSERT_TRUE(backend.ok()) << backend.status();
    absl::Status prepared;
    std::thread([&] { prepared = (*backend)->Prepare(weights); }).join();
    ASSERT_TRUE(prepared.ok()) << prepared;
    BatchEngine engine({.limits = {.max_decode_rows = 8, .prefill_chunk_tokens = 24}}, *std::move(backend), weights,
                       &metrics_);
    auto sink = std::make_shared<RecordingSink>();
    engine.Submit(TinyGroup(1, 20, 2, 6), sink);
    std::thread([&] {
      while (engine.Step()) {
      }
    }).join();
    EXPECT_TRUE(engine.status().ok()) << engine.status();
    EXPECT_EQ(sink->samples.finished(), 2u);
  }
  emulation::TheDevices() = {};
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
}

TEST_F(CudaBackendTest, AnErrorThatAnUpdateMetIsTheBackendsFromThenOn) {
  const ModelConfig config = Fitting(TinyConfig());
  const auto weights = MakeWeights(config, DType::kF32, 14);
  auto backend = MakeCudaStepBackend(OptionsOf(*weights, {}), {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
  ASSERT_TRUE(backend.ok()) << backend.status();
  ASSERT_TRUE((*backend)->Prepare(weights).ok());
  EXPECT_TRUE((*backend)->Check().ok());
  emulation::FailWork(0, cudaErrorLaunchFailure);
  EXPECT_FALSE((*backend)->Prepare(MakeWeights(config, DType::kF32, 15, 1)).ok());
  const absl::Status status = (*backend)->Check();
  EXPECT_EQ(cuda::RecoveryOf(status), cuda::Recovery::kRestartProcess) << status;
  emulation::FailWork(0, cudaSuccess);
}

TEST_F(CudaBackendTest, AHeadSizeWithoutKernelIsRefused) {
  const auto weights = MakeWeights(TinyConfig(), DType::kF32, 13);  // head_dim 8
  const auto backend = MakeCudaStepBackend(OptionsOf(*weights, {}), {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kInvalidArgument) << backend.status();
}

}  // namespace
}  // namespace lockstep
