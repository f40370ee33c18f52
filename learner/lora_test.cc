#include "learner/lora.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <thread>

#include "engine/base/process.h"
#include "engine/checkpoint/adapter.h"
#include "engine/checkpoint/state.h"
#include "learner/run_folder.h"
#include "learner/step_message.h"
#include "learner/trainer.h"
#include "learner/trainer_test_util.h"
#include "proto/channel.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

class LoraTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(dir_);
    fs::create_directories(dir_);
    WriteBase("base", 5);
    base_.resize(ParamLayout(TinyConfig()).total_size);
    ASSERT_TRUE(LoadHfArena(Path("base"), TinyConfig(), base_.data()).ok());
    samples_ = MakeSamples(24);
  }
  std::string Path(const std::string& name) const { return (dir_ / name).string(); }
  void WriteBase(const std::string& name, uint64_t seed) {
    std::vector<float> arena(ParamLayout(TinyConfig()).total_size);
    InitializeArena(TinyConfig(), seed, 0.1f, arena.data());
    ASSERT_TRUE(WriteHfFolder(Path(name), TinyConfig(), arena.data(), DType::kF32, "").ok());
  }
  TrainerOptions Options(DType dtype = DType::kF16) const {
    TrainerOptions options = TinyOptions(dtype);
    options.learner.set_lr(1e-2f);
    options.lora.config.set_rank(4);
    options.lora.config.set_alpha(8);
    options.lora.base_dir = Path("base");
    return options;
  }
  std::unique_ptr<Trainer> MakeFresh(const TrainerOptions& options, Collectives* collectives) {
    auto trainer = Trainer::Create(options, collectives);
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    InitializeLowRank(*(*trainer)->lora(), 3, (*trainer)->arena());
    EXPECT_TRUE((*trainer)->RefreshWeights().ok());
    return *std::move(trainer);
  }
  // round(base + scale B A), all parameters, as FP32 values.
  std::vector<float> Expected(const Trainer& trainer, DType dtype) const {
    std::vector<float> arena = base_;
    const ParamLayout layout(TinyConfig());
    for (int param = 0; param < static_cast<int>(layout.params.size()); ++param) {
      const ParamSpec& spec = layout.params[param];
      AddLowRank(*trainer.lora(), trainer.arena(), param, 0, spec.rows, spec.cols, arena.data() + spec.offset);
    }
    for (float& value : arena) value = RoundTo(dtype, value);
    return arena;
  }
  static std::vector<float> Held(const Trainer& trainer) {
    const ParamSource params = trainer.params();
    EXPECT_NE(params.weights, nullptr);
    std::vector<float> arena(params.weights->layout.total_size);
    params.weights->CopyToArena(arena.data());
    return arena;
  }

  fs::path dir_;
  std::vector<float> base_;
  std::vector<TrainSample> samples_;
  std::unique_ptr<Collectives> single_ = MakeSingleRankCollectives();
};

TEST_F(LoraTest, AStepMovesTheAdaptersAndTheWeightsAreTheRoundedSum) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    auto trainer = MakeFresh(Options(dtype), single_.get());
    EXPECT_EQ(trainer->arena_size(), trainer->lora()->total_size);
    const std::vector<float> start = Copy(trainer->arena(), trainer->arena_size());
    EXPECT_EQ(Held(*trainer), Expected(*trainer, dtype)) << "B is 0: the base";
    for (int step = 0; step < 3; ++step) ASSERT_TRUE(trainer->Step(samples_, 1).ok());
    EXPECT_NE(Copy(trainer->arena(), trainer->arena_size()), start);
    const std::vector<float> held = Held(*trainer);
    EXPECT_EQ(held, Expected(*trainer, dtype));
    const ParamLayout layout(TinyConfig());
    for (int param = 0; param < static_cast<int>(layout.params.size()); ++param) {
      const ParamSpec& spec = layout.params[param];
      bool moved = false;
      for (int64_t i = spec.offset; i < spec.offset + spec.size(); ++i) moved |= held[i] != RoundTo(dtype, base_[i]);
      EXPECT_EQ(moved, !trainer->lora()->of_param[param].empty()) << spec.name;
    }
  }
}

TEST_F(LoraTest, TheUpdateIsUnscaledAdamW) {
  TrainerOptions options = Options();
  options.learner.set_grad_clip(0);
  options.learner.set_weight_decay(0.5f);
  auto trainer = MakeFresh(options, single_.get());
  const std::vector<float> before = Copy(trainer->arena(), trainer->arena_size());
  ASSERT_TRUE(trainer->Step(samples_, 1).ok());
  double largest = 0;
  for (int64_t i = 0; i < trainer->arena_size(); ++i) {
    const double g = trainer->gradients()[i] / 65536.0;
    const double expected = before[i] * (1 - 1e-2 * 0.5) - 1e-2 * g / (std::abs(g) + 1e-8);
    ASSERT_NEAR(trainer->arena()[i], expected, 1e-6) << i;
    largest = std::max(largest, std::abs(g));
  }
  EXPECT_GT(largest, 1e-4);
}

// A supervised run learns its samples, with everything but two small matrices a layer frozen.
TEST_F(LoraTest, TrainingLowersTheLoss) {
  TrainerOptions options = Options();
  options.lora.config.add_target_modules("q_proj");
  options.lora.config.add_target_modules("v_proj");
  auto trainer = MakeFresh(options, single_.get());
  std::vector<TrainSample> samples = samples_;
  for (TrainSample& sample : samples) sample.log_mu.clear();
  const auto first = trainer->SupervisedStep(samples);
  ASSERT_TRUE(first.ok()) << first.status();
  for (int step = 0; step < 30; ++step) ASSERT_TRUE(trainer->SupervisedStep(samples).ok());
  EXPECT_LT(trainer->SupervisedStep(samples)->objective.loss, 0.9 * first->objective.loss);
}

TEST_F(LoraTest, ACheckpointIsAMergedModelAndAPeftAdapterAndResumesToTheSameBits) {
  MetricsRegistry metrics("learner");
  auto trainer = MakeFresh(Options(), single_.get());
  ASSERT_TRUE(trainer->Step(samples_, 2).ok());
  Checkpoints checkpoints(Path("checkpoints"), TinyConfig(), DType::kF16, Path("base"), 2, &metrics);
  RunPosition position;
  position.step = 1;
  const auto written = checkpoints.Write(*trainer, position);
  ASSERT_TRUE(written.ok()) << written.status();
  std::vector<float> merged(base_.size());
  ASSERT_TRUE(LoadHfArena(*written, TinyConfig(), merged.data()).ok());
  EXPECT_EQ(merged, Held(*trainer));
  std::vector<float> adapters(trainer->arena_size());
  const absl::Status loaded = LoadAdapter(*written + "/adapter", *trainer->lora(), adapters.data());
  ASSERT_TRUE(loaded.ok()) << loaded;
  EXPECT_EQ(adapters, Copy(trainer->arena(), trainer->arena_size()));
  ASSERT_TRUE(trainer->Step(samples_, 2).ok());

  auto resumed = MakeFresh(Options(), single_.get());
  const auto at = checkpoints.LoadLatest(*resumed);
  ASSERT_TRUE(at.ok()) << at.status();
  EXPECT_EQ(at->step, 1);
  ASSERT_TRUE(resumed->Step(samples_, 2).ok());
  EXPECT_EQ(Copy(resumed->arena(), resumed->arena_size()), Copy(trainer->arena(), trainer->arena_size()));
  EXPECT_EQ(Held(*resumed), Held(*trainer));

  // Adapters of one base mean nothing on another, nor with another scale; full training has other arrays.
  WriteBase("other", 6);
  TrainerOptions options = Options();
  options.lora.base_dir = Path("other");
  EXPECT_NE(checkpoints.LoadLatest(*MakeFresh(options, single_.get())).status().message().find("the state is of LoRA"),
            absl::string_view::npos);
  options = Options();
  options.lora.config.set_alpha(4);
  EXPECT_NE(checkpoints.LoadLatest(*MakeFresh(options, single_.get())).status().message().find("alpha 8"),
            absl::string_view::npos);
  options.lora.config.set_rank(0);
  auto full = Trainer::Create(options, single_.get());
  EXPECT_NE(checkpoints.LoadLatest(**full).status().message().find("has no FP32 array \"master\""),
            absl::string_view::npos);
}

TEST_F(LoraTest, ReplacingTheBasesFilesDuringARunChangesNothing) {
  auto trainer = MakeFresh(Options(), single_.get());
  fs::rename(Path("base"), Path("moved"));
  WriteBase("base", 6);
  ASSERT_TRUE(trainer->Step(samples_, 1).ok());
  EXPECT_EQ(Held(*trainer), Expected(*trainer, DType::kF16));
}

TEST_F(LoraTest, ErrorsAreOneLineBeforeAnythingIsTrained) {
  TrainerOptions options = Options();
  options.lora.base_dir = Path("absent");
  EXPECT_NE(Trainer::Create(options, single_.get()).status().message().find("absent"), absl::string_view::npos);
  options = Options();
  options.lora.config.add_target_modules("lm_head");
  EXPECT_NE(Trainer::Create(options, single_.get()).status().message().find("'lm_head' is an embedding"),
            absl::string_view::npos);
}

struct RankResult {
  std::vector<float> gradient, arena, held;
};

// Rank 1 starts with other adapters and follows, as the process does.
TEST_F(LoraTest, TwoRanksGiveTheStepOfOneWithinTheBoundOfAnFp32Sum) {
  RendezvousService service{std::make_shared<RendezvousTable>()};
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  auto listening = StartServer(builder, "127.0.0.1", 0);
  ASSERT_TRUE(listening.ok()) << listening.status();
  std::vector<RankResult> results(2);
  const auto join = [&](int rank) {
    auto joined =
        MakeGlooCollectives({.rank = rank, .world_size = 2, .rank0_address = listening->address, .prefix = "lora"});
    EXPECT_TRUE(joined.ok()) << joined.status();
    return *std::move(joined);
  };
  const auto keep = [&](int rank, const Trainer& trainer) {
    results[rank] = {Copy(trainer.gradients(), trainer.arena_size()), Copy(trainer.arena(), trainer.arena_size()),
                     Held(trainer)};
  };
  std::thread follower([&] {
    auto ranks = join(1);
    auto trainer = Trainer::Create(Options(), ranks.get());
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    const absl::Status status = FollowRank0(**trainer, *ranks);
    EXPECT_TRUE(status.ok()) << status;
    keep(1, **trainer);
  });
  auto ranks = join(0);
  auto trainer = MakeFresh(Options(), ranks.get());
  RankLeader leader(ranks.get());
  EXPECT_TRUE(trainer->BroadcastState().ok());
  StepMessage message;
  message.kind = StepMessage::Kind::kTrain;
  message.samples = samples_;
  EXPECT_TRUE(leader.Send(message).ok());
  EXPECT_TRUE(trainer->Step(samples_, 1).ok());
  message = StepMessage();
  message.kind = StepMessage::Kind::kEnd;
  EXPECT_TRUE(leader.Send(message).ok());
  follower.join();
  keep(0, *trainer);
  EXPECT_EQ(results[0].gradient, results[1].gradient);
  EXPECT_EQ(results[0].arena, results[1].arena) << "all ranks hold the same bits";
  EXPECT_EQ(results[0].held, results[1].held);

  // Both pack alike here: the micro-batches' own gradients are the same, and only the order of their sum differs, by at
  // most 2 (M - 1) u sum_j |g_j|. sum_j |g_j| from a run of each micro-batch alone.
  auto one = MakeFresh(Options(), single_.get());
  ASSERT_TRUE(one->Step(samples_, 1).ok());
  const auto ranges = PackMicroBatches(samples_, 40);
  std::vector<double> magnitude(one->arena_size(), 0.0);
  double largest = 0;
  for (const auto& [begin, end] : ranges) {
    auto alone = MakeFresh(Options(), single_.get());
    ASSERT_TRUE(alone->Step({samples_.begin() + begin, samples_.begin() + end}, 1).ok());
    const double share = static_cast<double>(end - begin) / static_cast<double>(samples_.size());
    for (int64_t i = 0; i < one->arena_size(); ++i) magnitude[i] += share * std::abs(alone->gradients()[i]);
  }
  for (const double value : magnitude) largest = std::max(largest, value);
  // Each micro-batch alone has coefficients that were divided by another count: one rounding more a token, relative to
  // the terms of its sums, which the largest element bounds.
  const double factor = 2 * static_cast<double>(ranges.size()) * 0x1p-24;
  for (int64_t i = 0; i < one->arena_size(); ++i) {
    ASSERT_NEAR(one->gradients()[i], results[0].gradient[i], factor * (magnitude[i] + 1e-2 * largest)) << i;
  }
  EXPECT_GT(largest, 1.0) << "scaled by the loss scale";
}

}  // namespace
}  // namespace lockstep
