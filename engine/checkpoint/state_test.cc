#include "engine/checkpoint/state.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/process.h"
#include "engine/checkpoint/hf_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
namespace fs = std::filesystem;

class StateTest : public ::testing::Test {
 protected:
  StateTest() {
    std::string pattern = ::testing::TempDir() + "/state_test.XXXXXX";
    dir_ = std::string(mkdtemp(pattern.data())) + "/checkpoints";
    config_.architecture = "LlamaForCausalLM";
    config_.vocab_size = 50;
    config_.hidden_size = 32;
    config_.num_layers = 2;
    config_.num_heads = config_.num_kv_heads = 4;
    config_.head_dim = 8;
    config_.intermediate_size = 48;
    config_.max_position_embeddings = 64;
    arena_.resize(static_cast<size_t>(ParamLayout(config_).total_size));
    InitializeArena(config_, 1, 0.1f, arena_.data());
    moment_.assign(arena_.size(), 0.25f);
    moment_[7] = 1e-30f;
  }

  CheckpointContents Contents() {
    CheckpointContents contents;
    contents.config = &config_;
    contents.arena = arena_.data();
    contents.values = {{"step", "12"}, {"loss_scale", "65536"}, {"text", "line\n\"quoted\" é"}};
    contents.arrays = {{"master", arena_.data(), static_cast<int64_t>(arena_.size())},
                       {"adam_m", moment_.data(), static_cast<int64_t>(moment_.size())}};
    return contents;
  }

  std::vector<std::string> Names() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir_)) names.push_back(entry.path().filename().string());
    return names;
  }

  std::string dir_;
  ModelConfig config_;
  std::vector<float> arena_, moment_;
};

TEST_F(StateTest, RestoresArraysBitForBitAndValues) {
  const auto path = WriteCheckpoint(dir_, 12, Contents(), 2);
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(*path, dir_ + "/step-12");
  EXPECT_EQ(LatestCheckpoint(dir_).value(), *path);
  std::vector<float> master(arena_.size()), moment(arena_.size());
  const auto values = LoadCheckpointState(*path, {{"adam_m", moment.data(), static_cast<int64_t>(moment.size())},
                                                  {"master", master.data(), static_cast<int64_t>(master.size())}});
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_EQ(*values, Contents().values);
  EXPECT_EQ(master, arena_);
  EXPECT_EQ(moment, moment_);
  EXPECT_TRUE(LoadHfWeights(*path, DType::kF16).ok());
}

TEST_F(StateTest, RefusesTheStateOfAnotherModel) {
  const auto path = WriteCheckpoint(dir_, 1, Contents(), 2);
  ASSERT_TRUE(path.ok()) << path.status();
  std::vector<float> small(3);
  EXPECT_THAT(std::string(LoadCheckpointState(*path, {{"master", small.data(), 3}}).status().message()),
              HasSubstr("has 2 arrays, the trainer has 1"));
  EXPECT_THAT(
      std::string(
          LoadCheckpointState(*path, {{"master", small.data(), 3}, {"adam_m", small.data(), 3}}).status().message()),
      HasSubstr("has no FP32 array \"master\" of 3 elements"));
}

TEST_F(StateTest, KeepsTheAskedNumberOfOlderCheckpoints) {
  for (int64_t step : {5, 9, 10, 100}) ASSERT_TRUE(WriteCheckpoint(dir_, step, Contents(), 1).ok());
  EXPECT_THAT(Names(), UnorderedElementsAre("step-10", "step-100", "latest"));
  EXPECT_EQ(ReadFile(dir_ + "/latest").value(), "step-100\n");
}

TEST_F(StateTest, ReplacesACheckpointOfTheSameStep) {
  ASSERT_TRUE(WriteCheckpoint(dir_, 3, Contents(), 1).ok());
  CheckpointContents changed = Contents();
  changed.values["step"] = "3b";
  ASSERT_TRUE(WriteCheckpoint(dir_, 3, changed, 1).ok());
  EXPECT_THAT(Names(), UnorderedElementsAre("step-3", "latest"));
  std::vector<float> master(arena_.size()), moment(arena_.size());
  EXPECT_EQ(LoadCheckpointState(dir_ + "/step-3", {{"master", master.data(), static_cast<int64_t>(master.size())},
                                                   {"adam_m", moment.data(), static_cast<int64_t>(moment.size())}})
                ->at("step"),
            "3b");
}

// One flipped bit anywhere, one missing byte, one missing file: the checkpoint before it is taken.
TEST_F(StateTest, PassesOverADamagedCheckpoint) {
  ASSERT_TRUE(WriteCheckpoint(dir_, 1, Contents(), 5).ok());
  ASSERT_TRUE(WriteCheckpoint(dir_, 2, Contents(), 5).ok());
  const std::string newest = dir_ + "/step-2";
  for (const char* name :
       {"model.safetensors", "config.json", "generation_config.json", "state/trainer.safetensors", "manifest.json"}) {
    const std::string path = newest + "/" + name;
    const std::string good = ReadFile(path).value();
    for (const size_t at : {size_t{0}, size_t{9}, good.size() / 2, good.size() - 2}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 4);
      std::ofstream(path, std::ios::binary) << bad;
      EXPECT_EQ(VerifyCheckpoint(newest).code(), absl::StatusCode::kDataLoss) << name << " at " << at;
      EXPECT_EQ(LatestCheckpoint(dir_).value(), dir_ + "/step-1") << name << " at " << at;
    }
    for (const size_t length : {size_t{0}, size_t{7}, size_t{8}, good.size() / 2, good.size() - 2}) {
      std::ofstream(path, std::ios::binary) << good.substr(0, length);
      EXPECT_EQ(VerifyCheckpoint(newest).code(), absl::StatusCode::kDataLoss) << name << " cut to " << length;
    }
    unlink(path.c_str());
    EXPECT_EQ(VerifyCheckpoint(newest).code(), absl::StatusCode::kDataLoss) << name << " missing";
    std::ofstream(path, std::ios::binary) << good;
  }
  EXPECT_EQ(LatestCheckpoint(dir_).value(), newest);
}

TEST_F(StateTest, LatestIsOnlyAHint) {
  ASSERT_TRUE(WriteCheckpoint(dir_, 1, Contents(), 5).ok());
  ASSERT_TRUE(WriteCheckpoint(dir_, 2, Contents(), 5).ok());
  for (const char* hint : {"step-9\n", "../../etc\n", "", "step-"}) {
    ASSERT_TRUE(WriteFileAtomically(dir_ + "/latest", hint).ok());
    EXPECT_EQ(LatestCheckpoint(dir_).value(), dir_ + "/step-2") << hint;
  }
  ASSERT_TRUE(WriteFileAtomically(dir_ + "/latest", "step-1\n").ok());
  EXPECT_EQ(LatestCheckpoint(dir_).value(), dir_ + "/step-1");
  EXPECT_EQ(LatestCheckpoint(dir_ + "/none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(StateTest, AWriteThatFailsHalfWayLeavesThePreviousCheckpointIntact) {
  ASSERT_TRUE(WriteCheckpoint(dir_, 1, Contents(), 0).ok());
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {arena_.size() * 3, old.rlim_max};  // the model's file fits, the state's does not
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status status = WriteCheckpoint(dir_, 2, Contents(), 0).status();
  setrlimit(RLIMIT_FSIZE, &old);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("trainer.safetensors"));
  EXPECT_THAT(Names(), UnorderedElementsAre("step-1", "latest"));
  EXPECT_EQ(LatestCheckpoint(dir_).value(), dir_ + "/step-1");
  EXPECT_TRUE(WriteCheckpoint(dir_, 2, Contents(), 0).ok());
}

TEST_F(StateTest, RefusesBeforeWritingWhatTheDiskCannotHold) {
  ASSERT_TRUE(WriteCheckpoint(dir_, 1, Contents(), 0).ok());
  CheckpointContents huge = Contents();
  huge.arrays[0].size = int64_t{1} << 55;
  const absl::Status status = WriteCheckpoint(dir_, 2, huge, 0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("a checkpoint needs 137438953488 MiB, the disk has"));
  EXPECT_THAT(Names(), UnorderedElementsAre("step-1", "latest"));
}

TEST_F(StateTest, RemovesTheTemporaryFolderOfADeadProcessOnly) {
  ASSERT_TRUE(WriteCheckpoint(dir_, 1, Contents(), 0).ok());
  const std::string dead = dir_ + "/step-9.tmp.2147483646";
  const std::string alive = dir_ + "/step-9.tmp.1";
  fs::create_directory(dead);
  fs::create_directory(alive);
  ASSERT_TRUE(WriteCheckpoint(dir_, 2, Contents(), 0).ok());
  EXPECT_FALSE(fs::exists(dead));
  EXPECT_TRUE(fs::exists(alive));
}

}  // namespace
}  // namespace lockstep
