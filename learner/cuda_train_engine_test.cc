// The trainer over the device's engine, its kernels compiled for the CPU, against the trainer over the CPU's: FP32
// under matched numerics, where forward passes have the CPU's bits and gradients differ by the order of sums alone.
#include "learner/cuda_train_engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/checkpoint/hf_folder.h"
#include "engine/kernels/cuda/emulation/runtime.h"
#include "learner/trainer.h"
#include "learner/trainer_test_util.h"
#include "learner/update_source.h"
#include "weight_sync/bucket_plan.h"

namespace lockstep {
namespace {

absl::StatusOr<std::unique_ptr<TrainEngine>> OnDevice(const TrainEngineOptions& options) {
  return MakeCudaTrainEngine(options, {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
}

// Heads that the device's attention has kernels for.
TrainerOptions Options(DType dtype) {
  TrainerOptions options = TinyOptions(dtype);
  options.config.num_heads = 2;
  options.config.num_kv_heads = 1;
  options.config.head_dim = 16;
  options.learner.set_lr(1e-3f);
  options.learner.set_weight_decay(0.01f);
  return options;
}

double Distance(const float* got, const float* expected, int64_t n) {
  double squares = 0, norm = 0;
  for (int64_t i = 0; i < n; ++i) {
    squares += std::pow(static_cast<double>(got[i]) - expected[i], 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(squares / norm);
}

class CudaTrainEngineTest : public ::testing::Test {
 protected:
  const std::unique_ptr<Collectives> single_ = MakeSingleRankCollectives();
};

TEST_F(CudaTrainEngineTest, AStepIsTheCpus) {
  TrainerOptions options = Options(DType::kF32);
  options.algorithm.set_kl_beta(0.1f);
  const auto samples = MakeSamples(12);
  auto cpu = MakeFreshTrainer(options, single_.get(), MakeCpuTrainEngine);
  auto device = MakeFreshTrainer(options, single_.get(), OnDevice);
  const auto expected = cpu->Step(samples, 1), got = device->Step(samples, 1);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->objective.loss, expected->objective.loss) << "forward passes have the CPU's bits";
  EXPECT_EQ(got->entropy_sum, expected->entropy_sum);
  EXPECT_EQ(got->objective.kl_sum, 0) << "at its own reference, bit for bit";
  EXPECT_NEAR(got->grad_norm, expected->grad_norm, 1e-5 * expected->grad_norm);
  ASSERT_TRUE(device->Fetch(TrainArrays::kGradients).ok());
  EXPECT_LT(Distance(device->gradients(), cpu->gradients(), cpu->arena_size()), 1e-5);
  ASSERT_TRUE(device->Fetch(TrainArrays::kState).ok());
  const auto want = cpu->StateArrays(), have = device->StateArrays();
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_LT(Distance(have[i].data, want[i].data, want[i].size), 2e-4) << want[i].name;
  }
  const auto later = device->Step(samples, 2);
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_GT(later->objective.kl_sum, 0) << "the policy has moved, the reference has not";
  EXPECT_EQ(later->updates, 2u);
}

TEST_F(CudaTrainEngineTest, ARestoredTrainerTakesTheSameNextStepToTheBit) {
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    auto first = MakeFreshTrainer(Options(dtype), single_.get(), OnDevice);
    ASSERT_TRUE(first->Step(MakeSamples(8), 2).ok());
    auto second = MakeFreshTrainer(Options(dtype), single_.get(), OnDevice);
    StateValues values;
    ASSERT_TRUE(first->Fetch(TrainArrays::kState).ok());
    first->SaveState(&values);
    auto from = first->StateArrays(), to = second->StateArrays();
    for (size_t i = 0; i < from.size(); ++i) std::memcpy(to[i].data, from[i].data, from[i].size * sizeof(float));
    ASSERT_TRUE(second->RestoreState(values).ok());
    for (Trainer* trainer : {first.get(), second.get()}) {
      ASSERT_TRUE(trainer->Step(MakeSamples(10), 1).ok());
      ASSERT_TRUE(trainer->Fetch(TrainArrays::kMasters).ok());
    }
    EXPECT_EQ(Copy(first->arena(), first->arena_size()), Copy(second->arena(), second->arena_size()));
  }
}

TEST_F(CudaTrainEngineTest, AGradientThatIsNotFiniteLeavesEverythingUntouched) {
  TrainerOptions options = Options(DType::kF16);
  options.learner.mutable_loss_scale()->set_init(0x1p60f);
  auto trainer = MakeFreshTrainer(options, single_.get(), OnDevice);
  ASSERT_TRUE(trainer->Fetch(TrainArrays::kState).ok());
  const std::vector<float> before = Copy(trainer->arena(), trainer->arena_size());
  const auto metrics = trainer->Step(MakeSamples(4), 1);
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_EQ(metrics->skipped, 1u);
  EXPECT_EQ(trainer->loss_scaler().scale(), 0x1p59f);
  ASSERT_TRUE(trainer->Fetch(TrainArrays::kState).ok());
  EXPECT_EQ(Copy(trainer->arena(), trainer->arena_size()), before);
}

TEST_F(CudaTrainEngineTest, HalfPrecisionTrainingLearnsItsSamples) {
  TrainerOptions options = Options(DType::kF16);
  options.learner.set_lr(5e-3f);
  auto trainer = MakeFreshTrainer(options, single_.get(), OnDevice);
  std::vector<TrainSample> samples = MakeSamples(4);
  for (TrainSample& sample : samples) sample.log_mu.clear();
  const double first = trainer->SupervisedStep(samples)->objective.loss;
  double last = first;
  for (int i = 0; i < 25; ++i) last = trainer->SupervisedStep(samples)->objective.loss;
  EXPECT_LT(last, 0.6 * first);
}

// Every kind of model: an arena of the device has its parameters elsewhere than an update.
std::vector<ModelConfig> Families() {
  ModelConfig dense = Options(DType::kF32).config;  // tied, with bias
  ModelConfig normed = dense;
  normed.architecture = "Qwen3ForCausalLM";
  normed.qkv_bias = false;
  normed.qk_norm = true;
  normed.tie_word_embeddings = false;
  ModelConfig experts = normed;
  experts.architecture = "Qwen3MoeForCausalLM";
  experts.num_experts = 4;
  experts.experts_per_token = 2;
  experts.moe_intermediate_size = 20;
  return {dense, normed, experts};
}

// The image of an update as the device writes it, and as the host does.
std::vector<char> DeviceImage(const DeviceParams& params, const BucketPlan& plan) {
  std::vector<char> image(plan.total_bytes + 8, 0x5A);
  const absl::Status status = params.WriteImage(plan, image.data());
  EXPECT_TRUE(status.ok()) << status;
  for (size_t i = plan.total_bytes; i < image.size(); ++i) EXPECT_EQ(image[i], 0x5A) << "behind the image";
  image.resize(plan.total_bytes);
  return image;
}
std::vector<char> HostImage(const ParamSource& params, const BucketPlan& plan) {
  std::vector<char> image(plan.total_bytes);
  for (const Bucket& bucket : plan.buckets) {
    char* const wire = image.data() + bucket.begin;
    if (params.weights != nullptr) {
      LoadBucket(plan, bucket, *params.weights, wire);
    } else {
      RoundBucket(plan, bucket, params.arena, wire);
    }
  }
  return image;
}

TEST_F(CudaTrainEngineTest, WhatTheDeviceWritesForAnUpdateHasTheBitsOfTheHost) {
  for (const ModelConfig& config : Families()) {
    TrainerOptions options = Options(DType::kF16);
    options.config = config;
    auto trainer = MakeFreshTrainer(options, single_.get(), OnDevice);
    ASSERT_TRUE(trainer->Step(MakeSamples(8), 2).ok());
    ASSERT_NE(trainer->device_params(), nullptr);
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
      const BucketPlan plan = *MakeBucketPlan(ParamLayout(config), dtype, 3000);
      const std::vector<char> image = DeviceImage(*trainer->device_params(), plan);
      ASSERT_TRUE(trainer->Fetch(TrainArrays::kMasters).ok());
      EXPECT_TRUE(image == HostImage(trainer->params(), plan)) << config.architecture << " " << DTypeName(dtype);
    }
  }
}

TEST_F(CudaTrainEngineTest, AnUpdateReadsTheHostOnlyWhereItIsAskedFor) {
  const auto cpu = MakeFreshTrainer(Options(DType::kF16), single_.get(), MakeCpuTrainEngine);
  EXPECT_EQ(UpdateSource(cpu.get()).source().device, nullptr);
  const auto trainer = MakeFreshTrainer(Options(DType::kF16), single_.get(), OnDevice);
  ASSERT_TRUE(trainer->Step(MakeSamples(8), 1).ok());
  UpdateSource values(trainer.get());
  const PublishSource source = values.source();
  const BucketPlan plan = *MakeBucketPlan(ParamLayout(Options(DType::kF16).config), DType::kF16, 3000);
  ASSERT_NE(source.device, nullptr);
  const std::vector<char> image = DeviceImage(*source.device, plan);
  EXPECT_FALSE(image == HostImage(trainer->params(), plan)) << "the host has what it had before the step";
  const auto on_host = source.host();
  ASSERT_TRUE(on_host.ok()) << on_host.status();
  EXPECT_TRUE(image == HostImage(*on_host, plan));
  EXPECT_TRUE(values.status().ok());
}

TEST_F(CudaTrainEngineTest, ADeviceThatIsLostDuringAnUpdateIsToldFromServersThatAre) {
  const auto trainer = MakeFreshTrainer(Options(DType::kF16), single_.get(), OnDevice);
  const BucketPlan plan = *MakeBucketPlan(ParamLayout(Options(DType::kF16).config), DType::kF16, 3000);
  std::vector<char> image(plan.total_bytes);
  UpdateSource values(trainer.get());
  const PublishSource source = values.source();
  emulation::FailWork(0, cudaErrorLaunchFailure);
  const absl::Status written = source.device->WriteImage(plan, image.data());
  EXPECT_FALSE(written.ok());
  EXPECT_EQ(values.status(), written);
  EXPECT_FALSE(source.host().ok());
  emulation::FailWork(0, cudaSuccess);
}

TEST_F(CudaTrainEngineTest, AdaptersAreTrainedAndMergedAsOnTheCpu) {
  TrainerOptions options = Options(DType::kF32);
  options.lora.config.set_rank(4);
  options.lora.config.set_alpha(8);
  options.lora.base_dir = ::testing::TempDir() + "/base_of_adapters";
  std::filesystem::remove_all(options.lora.base_dir);
  std::vector<float> base(static_cast<size_t>(ParamLayout(options.config).total_size));
  InitializeArena(options.config, 5, 0.1f, base.data());
  const absl::Status written = WriteHfFolder(options.lora.base_dir, options.config, base.data(), DType::kF32, "");
  ASSERT_TRUE(written.ok()) << written;
  std::vector<std::vector<float>> adapters, merged;
  for (const TrainEngineFactory& engine : {TrainEngineFactory(MakeCpuTrainEngine), TrainEngineFactory(OnDevice)}) {
    auto trainer = Trainer::Create(options, single_.get(), engine);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    InitializeLowRank(*(*trainer)->lora(), 3, (*trainer)->arena());
    ASSERT_TRUE((*trainer)->RefreshWeights().ok());
    const auto metrics = (*trainer)->Step(MakeSamples(12), 2);
    ASSERT_TRUE(metrics.ok()) << metrics.status();
    ASSERT_TRUE((*trainer)->Fetch(TrainArrays::kState).ok());
    adapters.push_back(Copy((*trainer)->arena(), (*trainer)->arena_size()));
    merged.emplace_back(base.size());
    (*trainer)->params().weights->CopyToArena(merged.back().data());
    if ((*trainer)->device_params() == nullptr) continue;
    for (const DType dtype : {DType::kF16, DType::kF32}) {
      const BucketPlan plan = *MakeBucketPlan(ParamLayout(options.config), dtype, 3000);
      EXPECT_TRUE(DeviceImage(*(*trainer)->device_params(), plan) == HostImage((*trainer)->params(), plan));
    }
  }
  EXPECT_LT(Distance(adapters[1].data(), adapters[0].data(), static_cast<int64_t>(adapters[0].size())), 2e-4);
  EXPECT_LT(Distance(merged[1].data(), merged[0].data(), static_cast<int64_t>(merged[0].size())), 2e-5);
  EXPECT_NE(merged[1], base);
}

// Rank 0 records what it broadcasts, rank 1 reads it; gradients of the other rank are this one's over again.
class Tape final : public Collectives {
 public:
  explicit Tape(int rank, std::deque<std::string>* tape) : rank_(rank), tape_(tape) {}
  int rank() const override { return rank_; }
  int world_size() const override { return 2; }
  absl::Status AllReduceSum(float* data, int64_t n, absl::Duration) override {
    for (int64_t i = 0; i < n; ++i) data[i] *= 2;
    return absl::OkStatus();
  }
  absl::Status AllReduceSum(double*, int64_t, absl::Duration) override { return absl::OkStatus(); }
  absl::Status AllReduceMax(double*, int64_t, absl::Duration) override { return absl::OkStatus(); }
  absl::StatusOr<bool> AllAgree(bool value, absl::Duration) override { return value; }
  absl::Status Broadcast(std::string* bytes, absl::Duration) override {
    if (rank_ == 0) {
      tape_->push_back(*bytes);
    } else {
      *bytes = tape_->front();
      tape_->pop_front();
    }
    return absl::OkStatus();
  }
  absl::Status Broadcast(float* data, int64_t n, absl::Duration timeout) override {
    std::string bytes(reinterpret_cast<const char*>(data), static_cast<size_t>(n) * sizeof(float));
    absl::Status status = Broadcast(&bytes, timeout);
    EXPECT_EQ(bytes.size(), static_cast<size_t>(n) * sizeof(float));
    std::memcpy(data, bytes.data(), bytes.size());
    return status;
  }
  absl::Status Barrier(absl::Duration) override { return absl::OkStatus(); }

 private:
  const int rank_;
  std::deque<std::string>* const tape_;
};

TEST_F(CudaTrainEngineTest, GradientsAreSummedThroughTheHostWhereRanksNeedIt) {
  std::deque<std::string> nothing;
  Tape ranks(0, &nothing);
  auto cpu = MakeFreshTrainer(Options(DType::kF32), &ranks, MakeCpuTrainEngine);
  auto device = MakeFreshTrainer(Options(DType::kF32), &ranks, OnDevice);
  const auto expected = cpu->Step(MakeSamples(12), 1), got = device->Step(MakeSamples(12), 1);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_NEAR(got->grad_norm, expected->grad_norm, 1e-5 * expected->grad_norm);
}

TEST_F(CudaTrainEngineTest, AnotherRankGetsStateAndReference) {
  TrainerOptions options = Options(DType::kF16);
  options.algorithm.set_kl_beta(0.1f);
  std::deque<std::string> tape;
  Tape first(0, &tape), second(1, &tape);
  auto sender = MakeFreshTrainer(options, &first, OnDevice);
  ASSERT_TRUE(sender->Step(MakeSamples(8), 1).ok());  // away from the reference
  ASSERT_TRUE(sender->BroadcastState().ok());
  auto receiver = Trainer::Create(options, &second, OnDevice);
  ASSERT_TRUE(receiver.ok());
  ASSERT_TRUE((*receiver)->BroadcastState().ok());
  EXPECT_TRUE(tape.empty());
  EXPECT_EQ((*receiver)->optimizer_steps(), 1);
  for (size_t i = 0; i < 3; ++i) {
    const StateArray sent = sender->StateArrays()[i], got = (*receiver)->StateArrays()[i];
    EXPECT_EQ(Copy(got.data, got.size), Copy(sent.data, sent.size)) << got.name;
  }
}

TEST_F(CudaTrainEngineTest, TheReferenceOfAnotherRankHasTheSamePolicy) {
  const TrainerOptions trainer = Options(DType::kF16);
  TrainEngineOptions options;
  options.config = trainer.config;
  std::deque<std::string> tape;
  Tape first(0, &tape), second(1, &tape);
  auto sender = OnDevice(options), receiver = OnDevice(options);
  ASSERT_TRUE(sender.ok() && receiver.ok());
  InitializeArena(options.config, 5, 0.1f, (*sender)->masters());
  ASSERT_TRUE((*sender)->Store(TrainArrays::kMasters).ok());
  ASSERT_TRUE((*sender)->CaptureReference().ok());
  ASSERT_TRUE((*sender)->BroadcastReference(&first, absl::Seconds(1)).ok());
  ASSERT_TRUE((*receiver)->BroadcastReference(&second, absl::Seconds(1)).ok());
  const MicroBatch batch = BuildMicroBatch(MakeSamples(3), std::vector<float>(3, 1.0f), 0);
  std::vector<float> sent(batch.packed.targets.size()), got(sent.size());
  ASSERT_TRUE((*sender)->Forward(Policy::kTrained, batch.packed, 1, sent.data(), nullptr, nullptr).ok());
  ASSERT_TRUE((*receiver)->Forward(Policy::kReference, batch.packed, 1, got.data(), nullptr, nullptr).ok());
  EXPECT_EQ(got, sent);
}

TEST_F(CudaTrainEngineTest, ALostDeviceEndsTheStepInOneLine) {
  auto trainer = MakeFreshTrainer(Options(DType::kF32), single_.get(), OnDevice);
  emulation::FailWork(40, cudaErrorLaunchFailure);
  const auto metrics = trainer->Step(MakeSamples(8), 1);
  emulation::FailWork(0, cudaSuccess);
  ASSERT_FALSE(metrics.ok());
  EXPECT_EQ(metrics.status().message().find('\n'), absl::string_view::npos);
}

TEST_F(CudaTrainEngineTest, AHeadSizeWithoutKernelIsRefused) {
  const auto trainer = Trainer::Create(TinyOptions(DType::kF32), single_.get(), OnDevice);  // head_dim 8
  EXPECT_EQ(trainer.status().code(), absl::StatusCode::kInvalidArgument) << trainer.status();
}

}  // namespace
}  // namespace lockstep
