// A learner and rollout servers whose weights are on (emulated) devices: an update by ipc or nccl asks nothing of the
// learner's host memory, and gives the servers what an update over the host gives them.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/model/low_rank.h"
#include "learner/cuda_train_engine.h"
#include "learner/trainer_test_util.h"
#include "learner/update_source.h"
#include "rollout_server/cuda_backend.h"
#include "rollout_server/server.h"
#include "weight_sync/sync_test_support.h"

namespace lockstep {
namespace {

constexpr DType kDType = DType::kF16;

// Tokens and log-probs by group and sample.
using Draws = std::map<std::pair<uint64_t, uint32_t>, std::pair<std::vector<int32_t>, std::vector<float>>>;

class Recorder final : public ResultSink {
 public:
  void Push(v1::GenerateResponse response) override {
    if (!response.has_chunk()) return;
    const v1::TokenChunk& chunk = response.chunk();
    auto& draws = samples[{chunk.group_id(), chunk.sample_index()}];
    draws.first.insert(draws.first.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    draws.second.insert(draws.second.end(), chunk.log_probs().begin(), chunk.log_probs().end());
  }
  bool Full() const override { return false; }
  void Fail(const std::string& reason) override { ADD_FAILURE() << reason; }

  Draws samples;
};

absl::StatusOr<std::unique_ptr<TrainEngine>> OnDevice(const TrainEngineOptions& options) {
  return MakeCudaTrainEngine(options, {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
}

TrainerOptions Options(const ModelConfig& config) {
  TrainerOptions options = TinyOptions(kDType);
  options.config = config;
  options.learner.set_lr(0.05f);
  return options;
}

std::vector<ModelConfig> Families() {
  ModelConfig dense = TinyConfig();  // tied, with bias
  dense.num_heads = 2;
  dense.num_kv_heads = 1;
  dense.head_dim = 16;
  dense.eos_token_ids = {};
  ModelConfig experts = dense;
  experts.architecture = "Qwen3MoeForCausalLM";
  experts.qkv_bias = false;
  experts.qk_norm = true;
  experts.tie_word_embeddings = false;
  experts.num_experts = 4;
  experts.experts_per_token = 2;
  experts.moe_intermediate_size = 20;
  return {dense, experts};
}

std::unique_ptr<RolloutServer> StartOnDevice(const ModelConfig& config) {
  DeviceBackendOptions options;
  options.config = config;
  options.dtype = kDType;
  options.kv_cache_mib = 1;
  options.max_decode_rows = 8;
  options.prefill_chunk_tokens = 24;
  options.max_sequence_tokens = 64;
  auto backend = MakeCudaStepBackend(options, {.workspace = {}, .gemm = cuda::MakeMatchedGemm()});
  EXPECT_TRUE(backend.ok()) << backend.status();
  auto weights = std::make_shared<Weights>(config, kDType);
  const std::vector<float> arena = RandomArena(config, 77);
  weights->SetFromArena(arena.data());
  RolloutServerOptions server_options;
  server_options.limits = {.max_decode_rows = 8, .prefill_chunk_tokens = 24};
  server_options.transports = EmulatedTransports();
  auto server = RolloutServer::Start(server_options, *std::move(backend), std::move(weights));
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

Draws Decode(RolloutServer& server) {
  auto sink = std::make_shared<Recorder>();
  static uint32_t attempt = 0;
  ++attempt;
  for (uint64_t g = 1; g <= 2; ++g) {
    v1::Group group;
    group.set_run_id("test");
    group.set_group_id(g);
    group.set_attempt(attempt);
    group.set_num_samples(2);
    group.set_seed(1234);
    for (int32_t i = 0; i < 9; ++i) group.add_prompt_token_ids((7 * i + static_cast<int32_t>(g)) % 48);
    group.mutable_sampling()->set_temperature(1);
    group.mutable_sampling()->set_top_p(1);
    group.mutable_sampling()->set_max_tokens(12);
    server.loop().Post([group, sink](BatchEngine& engine) { engine.Submit(group, sink); });
  }
  EXPECT_TRUE(server.loop().WaitUntilIdle(absl::Seconds(120)));
  EXPECT_EQ(sink->samples.size(), 4u);
  return sink->samples;
}

// A step that changes the weights: the loss scale begins so high that the first ones may be skipped.
void Learn(Trainer& trainer) {
  for (int attempt = 0; attempt < 30; ++attempt) {
    const auto stats = trainer.Step(MakeSamples(8), 1);
    ASSERT_TRUE(stats.ok()) << stats.status();
    if (stats->skipped == 0) return;
  }
  FAIL() << "every step was skipped";
}

class DeviceUpdateTest : public ::testing::TestWithParam<std::string> {
 protected:
  void TearDown() override { TestTransport() = "gloo"; }
  // One update of each server, directly and over the host, that must decode the same afterwards.
  void UpdateBoth(Trainer& trainer, uint64_t version, LearnerEnd& learner, RolloutServer& direct,
                  LearnerEnd& host_learner, RolloutServer& over_host) {
    UpdateSource values(&trainer);
    PublishSource source = values.source();
    ASSERT_NE(source.device, nullptr);
    const auto host = source.host;
    source.host = []() -> absl::StatusOr<ParamSource> { return absl::InternalError("the host is asked"); };
    const auto report = learner->Publish(1, version, source, {direct.address()});
    ASSERT_TRUE(report.ok()) << report.status();
    source.host = host;
    const auto host_report = host_learner->Publish(1, version, source, {over_host.address()});
    ASSERT_TRUE(host_report.ok()) << host_report.status();
    EXPECT_EQ(report->bytes, host_report->bytes);
    EXPECT_EQ(direct.loop().stats().weight_version, version);
    Draws after = Decode(direct);
    EXPECT_NE(after, last_) << "the weights are others";
    EXPECT_EQ(Decode(over_host), after);
    last_ = std::move(after);
  }
  std::unique_ptr<LearnerEnd> MakeLearner(const ModelConfig& config, const std::string& transport) {
    TestTransport() = transport;
    return std::make_unique<LearnerEnd>(config, kDType, 4096);
  }

  const std::unique_ptr<Collectives> single_ = MakeSingleRankCollectives();
  Draws last_;
};
INSTANTIATE_TEST_SUITE_P(Transports, DeviceUpdateTest, ::testing::Values("ipc", "nccl"),
                         [](const auto& info) { return info.param; });

TEST_P(DeviceUpdateTest, ServersGetWhatAnUpdateOverTheHostGivesAndTheHostIsNotAsked) {
  for (const ModelConfig& config : Families()) {
    auto trainer = MakeFreshTrainer(Options(config), single_.get(), OnDevice);
    const auto direct = StartOnDevice(config), over_host = StartOnDevice(config), late = StartOnDevice(config);
    last_ = Decode(*direct);
    EXPECT_EQ(Decode(*over_host), last_);
    const auto learner = MakeLearner(config, GetParam()), host_learner = MakeLearner(config, "gloo");
    for (uint64_t version = 1; version <= 3; ++version) {
      Learn(*trainer);
      UpdateBoth(*trainer, version, *learner, *direct, *host_learner, *over_host);
    }
    // A server that comes late pulls from the learner's device, over the host on its own side.
    const absl::Status pulled = (*learner)->CatchUp(late->address());
    ASSERT_TRUE(pulled.ok()) << pulled;
    EXPECT_EQ(Decode(*late), last_);
  }
}

TEST_P(DeviceUpdateTest, MergedAdaptersGoTheSameWay) {
  const ModelConfig config = Families()[0];
  TrainerOptions options = Options(config);
  options.lora.config.set_rank(4);
  options.lora.config.set_alpha(8);
  options.lora.base_dir = ::testing::TempDir() + "/base_of_adapters";
  std::filesystem::remove_all(options.lora.base_dir);
  const std::vector<float> base = RandomArena(config, 5);
  const absl::Status written = WriteHfFolder(options.lora.base_dir, config, base.data(), DType::kF32, "");
  ASSERT_TRUE(written.ok()) << written;
  auto trainer = Trainer::Create(options, single_.get(), OnDevice);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  InitializeLowRank(*(*trainer)->lora(), 3, (*trainer)->arena());
  ASSERT_TRUE((*trainer)->RefreshWeights().ok());
  const auto direct = StartOnDevice(config), over_host = StartOnDevice(config);
  const auto learner = MakeLearner(config, GetParam()), host_learner = MakeLearner(config, "gloo");
  for (uint64_t version = 1; version <= 2; ++version) {
    Learn(**trainer);
    UpdateBoth(**trainer, version, *learner, *direct, *host_learner, *over_host);
  }
}

}  // namespace
}  // namespace lockstep
