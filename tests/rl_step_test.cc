// Learner and rollout servers as processes, without the client: reinforcement learning steps, and what kills may not
// change. A tiny model with random weights is enough: the rewards come from which characters it happens to write.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/digest.h"
#include "engine/base/process.h"
#include "engine/tokenizer/arithmetic.h"
#include "learner/ledger.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kDeadline = absl::Seconds(150);

std::string Binary(const std::string& path) {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/", std::getenv("TEST_WORKSPACE"), "/", path);
}

// A child that dies with the test.
class Process {
 public:
  Process(const std::vector<std::string>& arguments, const std::string& log) {
    pid_ = fork();
    if (pid_ != 0) return;
    const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    dup2(fd, 1);
    dup2(fd, 2);
    std::vector<char*> argv;
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    execv(argv[0], argv.data());
    _exit(127);
  }
  ~Process() {
    if (running()) Signal(SIGKILL);
    if (pid_ > 0 && !reaped_) waitpid(pid_, &status_, 0);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void Signal(int signal) { kill(pid_, signal); }
  bool running() {
    if (!reaped_ && waitpid(pid_, &status_, WNOHANG) == pid_) reaped_ = true;
    return !reaped_;
  }
  // Exit code; 128 + signal when killed; -1 when it still ran at the deadline.
  int Wait() {
    const absl::Time deadline = absl::Now() + kDeadline;
    while (running() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(20));
    if (!reaped_) return -1;
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
  }

 private:
  pid_t pid_ = -1;
  bool reaped_ = false;
  int status_ = 0;
};

bool PollUntil(const std::function<bool()>& condition) {
  const absl::Time deadline = absl::Now() + kDeadline;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(20));
  }
  return true;
}

class RlStepTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(dir_);
    fs::create_directories(dir_ / "model");
    ASSERT_TRUE(MakeArithmeticTokenizer(Path("model")).ok());
    std::ofstream(Path("model/config.json"))
        << R"({"architectures":["Qwen2ForCausalLM"],"model_type":"qwen2","vocab_size":32,"hidden_size":48,)"
           R"("num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":96,)"
           R"("max_position_embeddings":96,"rms_norm_eps":1e-6,"rope_theta":10000.0,"tie_word_embeddings":true,)"
           R"("hidden_act":"silu","eos_token_id":22,"torch_dtype":"float16"})";
    std::ofstream sft(Path("sft.jsonl")), rl(Path("rl.jsonl"));
    for (int i = 0; i < 10; ++i) {
      sft << R"({"prompt":"Q: )" << i << R"(=","response":"A: )" << i << "\"}\n";
      rl << R"({"prompt":"Q: )" << i << R"(=","answer":")" << i << "\"}\n";
    }
    sft.close();
    WriteConfig("base", "sft.jsonl", "model", 12, 1);
    Process pretrain({Binary("learner/lockstep_learner"), "--mode=pretrain", "--config=" + Path("base.pbtxt")},
                     Path("base.log"));
    ASSERT_EQ(pretrain.Wait(), 0) << Log("base.log");
  }

  std::string Path(const std::string& name) const { return (dir_ / name).string(); }
  std::string Log(const std::string& name) const { return ReadFile(Path(name)).value_or("no log"); }

  void WriteConfig(const std::string& run, const std::string& data, const std::string& model, int max_steps,
                   int world_size, int max_staleness = 0, int updates = 2) {
    std::ofstream(Path(run + ".pbtxt"))
        << "model { path: '" << Path(model) << "' }\n"
        << "data { train: '" << Path(data) << "' shuffle: true max_prompt_tokens: 32 reward: 'numeric' }\n"
        << "rollout { dtype: 'fp16' n: 4 temperature: 1 top_p: 1 max_tokens: 24 threads: 1 prefill_chunk_tokens: 64 "
           "max_batch_size: 16 max_groups_in_flight: 4 group_timeout_seconds: 60 kv_cache_mib: 4 }\n"
        << "algorithm { name: 'pg_seq_is' advantage: 'mean' aggregation: 'constant' old_log_prob: 'recompute' "
           "max_staleness: "
        << max_staleness << " " << more_algorithm_ << " }\n"
        << "learner { world_size: " << world_size
        << " dtype: 'fp16' lr: 1e-3 beta1: 0.9 beta2: 0.95 adam_eps: 1e-8 grad_clip: 1 micro_batch_tokens: 256 "
           "threads: 1 loss_scale { mode: 'auto' init: 65536 growth_interval: 3 max_consecutive_skips: 20 } }\n"
        << "weight_sync { transport: 'gloo' bucket_mib: 1 timeout_seconds: 30 in_flight: 'continue' }\n"
        << "trainer { prompts_per_step: 8 updates_per_step: " << updates << " max_steps: " << max_steps
        << " checkpoint_every: 2 keep_checkpoints: 2 }\n"
        << "numerics: 'matched' seed: 5 run_dir: '" << Path(run) << "'\n"
        << more_config_;
  }

  std::unique_ptr<Process> StartServer(const std::string& run, int index) {
    const std::string name = absl::StrCat(run, "-rollout-", index);
    fs::remove(Path(name + ".address"));
    return std::make_unique<Process>(
        std::vector<std::string>{Binary("rollout_server/lockstep_rollout_server"), "--config=" + Path(run + ".pbtxt"),
                                 "--metrics_port=-1", "--address_file=" + Path(name + ".address")},
        Path(name + ".log"));
  }
  std::string ServerAddress(const std::string& run, int index) {
    const std::string file = Path(absl::StrCat(run, "-rollout-", index, ".address"));
    EXPECT_TRUE(PollUntil([&] { return fs::exists(file); })) << file;
    std::string address = ReadFile(file).value_or("");
    return address.substr(0, address.find('\n'));
  }
  std::unique_ptr<Process> StartLearner(const std::string& run, const std::string& addresses,
                                        const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {Binary("learner/lockstep_learner"), "--config=" + Path(run + ".pbtxt"),
                                          "--rollout_addresses=" + addresses,
                                          "--address_file=" + Path(run + "-learner.address")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return std::make_unique<Process>(arguments, Path(run + ".log"));
  }
  // Steps in metrics.jsonl so far.
  size_t Steps(const std::string& run) {
    const std::string text = ReadFile(Path(run + "/metrics.jsonl")).value_or("");
    return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
  }

  // What must not depend on faults: figures of each step, and the last weights.
  std::vector<std::string> Fingerprint(const std::string& run, int last_step) {
    std::vector<std::string> lines;
    std::ifstream file(Path(run + "/metrics.jsonl"));
    for (std::string line; std::getline(file, line);) {
      const auto step = nlohmann::json::parse(line);
      EXPECT_EQ(step["max_abs_log_ratio"].is_null(), false);
      lines.push_back(absl::StrCat(step["step"].dump(), " reward ", step["reward_mean"].dump(), " length ",
                                   step["response_length_mean"].dump(), " loss ", step["loss"].dump(), " norm ",
                                   step["grad_norm"].dump(), " scale ", step["loss_scale"].dump()));
    }
    const auto weights = ReadFile(Path(absl::StrCat(run, "/checkpoints/step-", last_step, "/model.safetensors")));
    EXPECT_TRUE(weights.ok()) << weights.status() << Log(run + ".log");
    if (weights.ok()) lines.push_back(DigestHex(Digest(weights->data(), weights->size())));
    return lines;
  }
  void ExpectSoundLedger(const std::string& run, uint64_t steps, uint64_t samples) {
    auto ledger = Ledger::Open(Path(run + "/ledger.db"));
    ASSERT_TRUE(ledger.ok()) << ledger.status();
    EXPECT_TRUE((*ledger)->Audit().ok()) << (*ledger)->Audit();
    const auto counts = (*ledger)->Counts();
    EXPECT_EQ(counts->steps, steps);
    EXPECT_EQ(counts->accepted, samples);
    EXPECT_EQ(counts->committed + counts->dropped, samples);
  }

  void TrainInTwoProcesses() {
    WriteConfig("run", "rl.jsonl", kBase, 3, 2);
    auto server = StartServer("run", 0);
    auto rank0 = StartLearner("run", ServerAddress("run", 0));
    ASSERT_TRUE(PollUntil([&] { return fs::exists(Path("run-learner.address")) || !rank0->running(); }));
    std::string address = ReadFile(Path("run-learner.address")).value_or("");
    address = address.substr(0, address.find('\n'));
    Process rank1(
        {Binary("learner/lockstep_learner"), "--config=" + Path("run.pbtxt"), "--rank=1", "--rank0_address=" + address},
        Path("run-1.log"));
    EXPECT_EQ(rank0->Wait(), 0) << Log("run.log");
    EXPECT_EQ(rank1.Wait(), 0) << Log("run-1.log");
    ExpectSoundLedger("run", 3, 96);
  }

  static constexpr char kBase[] = "base/checkpoints/step-12";
  fs::path dir_;
  std::string more_algorithm_;  // fields of the algorithm section
  std::string more_config_;     // of the runs that are written after it is set
};

constexpr char kLora[] = "lora { rank: 4 alpha: 32 }\n";

TEST_F(RlStepTest, MatchedNumericsGiveLogMuEqualToLogPiInEveryStep) {
  WriteConfig("run", "rl.jsonl", kBase, 3, 1, /*max_staleness=*/0, /*updates=*/1);
  auto server = StartServer("run", 0);
  auto learner = StartLearner("run", ServerAddress("run", 0));
  ASSERT_EQ(learner->Wait(), 0) << Log("run.log");
  std::ifstream file(Path("run/metrics.jsonl"));
  int steps = 0;
  for (std::string line; std::getline(file, line); ++steps) {
    const auto step = nlohmann::json::parse(line);
    EXPECT_EQ(step["max_abs_log_ratio"].get<double>(), 0.0);
    EXPECT_GT(step["response_tokens"].get<int>(), 0);
    EXPECT_EQ(step["effective_sample_size"].get<double>(), 1.0);
  }
  EXPECT_EQ(steps, 3);
  ExpectSoundLedger("run", 3, 96);
}

TEST_F(RlStepTest, TheResultDoesNotDependOnServersTheirNumberOrTheirDeath) {
  WriteConfig("clean", "rl.jsonl", kBase, 6, 1);
  {
    auto server = StartServer("clean", 0);
    auto learner = StartLearner("clean", ServerAddress("clean", 0));
    ASSERT_EQ(learner->Wait(), 0) << Log("clean.log");
  }
  WriteConfig("faulty", "rl.jsonl", kBase, 6, 1);
  auto victim = StartServer("faulty", 0);
  auto survivor = StartServer("faulty", 1);
  auto learner = StartLearner("faulty", ServerAddress("faulty", 0) + "," + ServerAddress("faulty", 1));
  ASSERT_TRUE(PollUntil([&] { return Steps("faulty") >= 2 || !learner->running(); })) << Log("faulty.log");
  ASSERT_TRUE(learner->running()) << "the kill must hit a run in progress\n" << Log("faulty.log");
  victim->Signal(SIGKILL);
  EXPECT_EQ(victim->Wait(), 128 + SIGKILL);
  ASSERT_EQ(learner->Wait(), 0) << Log("faulty.log");
  EXPECT_EQ(Fingerprint("clean", 6), Fingerprint("faulty", 6));
  ExpectSoundLedger("faulty", 6, 192);
}

TEST_F(RlStepTest, AKilledLearnerResumesAndTakesTheSameSteps) {
  WriteConfig("clean", "rl.jsonl", kBase, 7, 1);
  {
    auto server = StartServer("clean", 0);
    auto learner = StartLearner("clean", ServerAddress("clean", 0));
    ASSERT_EQ(learner->Wait(), 0) << Log("clean.log");
  }
  WriteConfig("killed", "rl.jsonl", kBase, 7, 1);
  auto server = StartServer("killed", 0);
  const std::string address = ServerAddress("killed", 0);
  for (size_t steps : {3, 5}) {
    auto learner = StartLearner("killed", address, {"--resume"});
    ASSERT_TRUE(PollUntil([&] { return Steps("killed") >= steps || !learner->running(); })) << Log("killed.log");
    learner->Signal(SIGKILL);
    ASSERT_EQ(learner->Wait(), 128 + SIGKILL) << "the kill must be what ended it\n" << Log("killed.log");
  }
  auto learner = StartLearner("killed", address, {"--resume"});
  ASSERT_EQ(learner->Wait(), 0) << Log("killed.log");
  EXPECT_EQ(Fingerprint("clean", 7), Fingerprint("killed", 7));
  ExpectSoundLedger("killed", 7, 224);
}

TEST_F(RlStepTest, DynamicSamplingReplacesGroupsWithoutSignalAndAKillChangesNothing) {
  constexpr int kPrompts = 8, kSamples = 4, kBatches = 3;
  more_algorithm_ = absl::StrCat("dynamic_sampling: true dynamic_sampling_max_batches: ", kBatches);
  WriteConfig("clean", "rl.jsonl", kBase, 4, 1);
  {
    auto server = StartServer("clean", 0);
    auto learner = StartLearner("clean", ServerAddress("clean", 0));
    ASSERT_EQ(learner->Wait(), 0) << Log("clean.log");
  }
  int extra_groups = 0, accepted = 0;
  std::ifstream file(Path("clean/metrics.jsonl"));
  for (std::string line; std::getline(file, line);) {
    const auto step = nlohmann::json::parse(line);
    const int extra = step["extra_groups"], left_out = step["no_signal_groups"], samples = step["samples"];
    EXPECT_LE(extra, (kBatches - 1) * kPrompts);
    EXPECT_EQ(samples, (kPrompts + extra - left_out) * kSamples) << "what teaches is trained on, all of it";
    EXPECT_TRUE(samples == kPrompts * kSamples || extra == (kBatches - 1) * kPrompts) << "full, or at the bound";
    extra_groups += extra;
    accepted += (kPrompts + extra) * kSamples;
  }
  EXPECT_GT(extra_groups, 0) << "a base model this weak has groups without any right answer";
  ExpectSoundLedger("clean", 4, accepted);

  WriteConfig("killed", "rl.jsonl", kBase, 4, 1);
  auto server = StartServer("killed", 0);
  const std::string address = ServerAddress("killed", 0);
  {
    auto learner = StartLearner("killed", address, {"--resume"});
    ASSERT_TRUE(PollUntil([&] { return Steps("killed") >= 3 || !learner->running(); })) << Log("killed.log");
    learner->Signal(SIGKILL);
    ASSERT_EQ(learner->Wait(), 128 + SIGKILL) << "the kill must be what ended it\n" << Log("killed.log");
  }
  auto learner = StartLearner("killed", address, {"--resume"});
  ASSERT_EQ(learner->Wait(), 0) << Log("killed.log");
  EXPECT_EQ(Fingerprint("clean", 4), Fingerprint("killed", 4));
  ExpectSoundLedger("killed", 4, accepted);
}

TEST_F(RlStepTest, AKlPenaltyKeepsItsReferenceOverAResume) {
  more_algorithm_ = "kl_beta: 0.05";
  WriteConfig("clean", "rl.jsonl", kBase, 4, 1);
  {
    auto server = StartServer("clean", 0);
    ASSERT_EQ(StartLearner("clean", ServerAddress("clean", 0))->Wait(), 0) << Log("clean.log");
  }
  WriteConfig("stopped", "rl.jsonl", kBase, 2, 1);
  auto server = StartServer("stopped", 0);
  const std::string address = ServerAddress("stopped", 0);
  ASSERT_EQ(StartLearner("stopped", address)->Wait(), 0) << Log("stopped.log");
  WriteConfig("stopped", "rl.jsonl", kBase, 4, 1);
  ASSERT_EQ(StartLearner("stopped", address, {"--resume"})->Wait(), 0) << Log("stopped.log");
  EXPECT_EQ(Fingerprint("clean", 4), Fingerprint("stopped", 4));
  double last = 0;
  std::ifstream file(Path("clean/metrics.jsonl"));
  for (std::string line; std::getline(file, line);) {
    const auto step = nlohmann::json::parse(line);
    last = step["reference_kl"].get<double>();
    EXPECT_GT(step["seconds"]["reference"].get<double>(), 0);
  }
  EXPECT_GT(last, 0) << "the policy has moved from its reference";
}

TEST_F(RlStepTest, ALoraRunIsMatchedAndAnotherRunGoesOnFromItsAdapter) {
  more_config_ = kLora;
  WriteConfig("run", "rl.jsonl", kBase, 3, 1, /*max_staleness=*/0, /*updates=*/1);
  auto server = StartServer("run", 0);
  auto learner = StartLearner("run", ServerAddress("run", 0));
  ASSERT_EQ(learner->Wait(), 0) << Log("run.log");
  std::ifstream file(Path("run/metrics.jsonl"));
  int steps = 0, moved = 0;
  for (std::string line; std::getline(file, line); ++steps) {
    const auto step = nlohmann::json::parse(line);
    EXPECT_EQ(step["max_abs_log_ratio"].get<double>(), 0.0);
    EXPECT_GT(step["response_tokens"].get<int>(), 0);
    moved += step["grad_norm"].get<double>() > 0 ? 1 : 0;
  }
  EXPECT_EQ(steps, 3);
  EXPECT_GT(moved, 0);
  const std::string adapter = Path("run/checkpoints/step-3/adapter");
  ASSERT_TRUE(fs::exists(adapter + "/adapter_config.json"));
  const auto merged = ReadFile(Path("run/checkpoints/step-3/model.safetensors"));
  EXPECT_NE(*merged, *ReadFile(Path(kBase) + "/model.safetensors"));

  // With a learning rate of 0 the next run's own checkpoint shows what it began with.
  WriteConfig("next", "rl.jsonl", kBase, 1, 1, /*max_staleness=*/0, /*updates=*/1);
  std::string config = ReadFile(Path("next.pbtxt")).value();
  config.replace(config.find("model {"), 7, "model { adapter: '" + adapter + "'");
  config.replace(config.find("lr: 1e-3"), 8, "lr: 0");
  std::ofstream(Path("next.pbtxt")) << config;
  auto second_server = StartServer("next", 0);
  auto next = StartLearner("next", ServerAddress("next", 0));
  ASSERT_EQ(next->Wait(), 0) << Log("next.log");
  EXPECT_EQ(*ReadFile(Path("next/checkpoints/step-1/adapter/adapter_model.safetensors")),
            *ReadFile(adapter + "/adapter_model.safetensors"));
  EXPECT_EQ(*ReadFile(Path("next/checkpoints/step-1/model.safetensors")), *merged);
  const auto step = nlohmann::json::parse(ReadFile(Path("next/metrics.jsonl")).value());
  EXPECT_EQ(step["max_abs_log_ratio"].get<double>(), 0.0) << "the server got the merged weights";
}

TEST_F(RlStepTest, AKilledLoraLearnerResumesAndTakesTheSameSteps) {
  more_config_ = kLora;
  WriteConfig("clean", "rl.jsonl", kBase, 5, 1);
  {
    auto server = StartServer("clean", 0);
    auto learner = StartLearner("clean", ServerAddress("clean", 0));
    ASSERT_EQ(learner->Wait(), 0) << Log("clean.log");
  }
  WriteConfig("killed", "rl.jsonl", kBase, 5, 1);
  auto server = StartServer("killed", 0);
  const std::string address = ServerAddress("killed", 0);
  {
    auto learner = StartLearner("killed", address);
    ASSERT_TRUE(PollUntil([&] { return Steps("killed") >= 3 || !learner->running(); })) << Log("killed.log");
    learner->Signal(SIGKILL);
    ASSERT_EQ(learner->Wait(), 128 + SIGKILL) << "the kill must be what ended it\n" << Log("killed.log");
  }
  auto learner = StartLearner("killed", address, {"--resume"});
  ASSERT_EQ(learner->Wait(), 0) << Log("killed.log");
  EXPECT_EQ(Fingerprint("clean", 5), Fingerprint("killed", 5));
  ExpectSoundLedger("killed", 5, 160);
}

TEST_F(RlStepTest, SigtermEndsTheRunWithACheckpointAndExitCodeZero) {
  WriteConfig("run", "rl.jsonl", kBase, 100000, 1);
  auto server = StartServer("run", 0);
  auto learner = StartLearner("run", ServerAddress("run", 0));
  ASSERT_TRUE(PollUntil([&] { return Steps("run") >= 1 || !learner->running(); }));
  learner->Signal(SIGTERM);
  EXPECT_EQ(learner->Wait(), 0) << Log("run.log");
  EXPECT_TRUE(fs::exists(Path(absl::StrCat("run/checkpoints/step-", Steps("run"), "/model.safetensors"))));
}

TEST_F(RlStepTest, WithoutAnyServerTheRunEndsWithOneLineAndItsCheckpoint) {
  WriteConfig("run", "rl.jsonl", kBase, 100000, 1);
  auto server = StartServer("run", 0);
  auto learner = StartLearner("run", ServerAddress("run", 0), {"--servers_timeout_seconds=3"});
  ASSERT_TRUE(PollUntil([&] { return Steps("run") >= 1 || !learner->running(); }));
  server->Signal(SIGKILL);
  EXPECT_EQ(learner->Wait(), 1);
  EXPECT_NE(Log("run.log").find("error: no rollout server has been ready for 3s"), std::string::npos) << Log("run.log");
  EXPECT_TRUE(fs::exists(Path(absl::StrCat("run/checkpoints/step-", Steps("run"), "/model.safetensors"))));
}

TEST_F(RlStepTest, TwoLearnerProcessesTrainTogether) { TrainInTwoProcesses(); }

TEST_F(RlStepTest, TwoLearnerProcessesTrainAdaptersTogether) {
  more_config_ = kLora;
  TrainInTwoProcesses();
}

TEST_F(RlStepTest, OneStepAheadKeepsStalenessWithinItsBound) {
  WriteConfig("run", "rl.jsonl", kBase, 5, 1, /*max_staleness=*/1);
  auto server = StartServer("run", 0);
  auto learner = StartLearner("run", ServerAddress("run", 0));
  ASSERT_EQ(learner->Wait(), 0) << Log("run.log");
  std::ifstream file(Path("run/metrics.jsonl"));
  for (std::string line; std::getline(file, line);) {
    const double staleness = nlohmann::json::parse(line)["staleness_mean"].get<double>();
    EXPECT_GE(staleness, 0);
    EXPECT_LE(staleness, 1);
  }
  ExpectSoundLedger("run", 5, 160);
}

TEST_F(RlStepTest, FilteringKeepsTheProblemsBetweenTheThresholds) {
  WriteConfig("run", "rl.jsonl", kBase, 1, 1);
  auto server = StartServer("run", 0);
  auto learner = StartLearner("run", ServerAddress("run", 0),
                              {"--mode=filter", "--filter_samples=8", "--filter_low=0.0", "--filter_high=1.0",
                               "--filter_out=" + Path("kept.jsonl")});
  ASSERT_EQ(learner->Wait(), 0) << Log("run.log");
  std::ifstream file(Path("kept.jsonl"));
  size_t kept = 0;
  for (std::string line; std::getline(file, line); ++kept) {
    const double rate = nlohmann::json::parse(line)["pass_rate"].get<double>();
    EXPECT_EQ(rate * 8, std::round(rate * 8)) << "a rate of eight samples";
  }
  EXPECT_EQ(kept, 10);
}

TEST_F(RlStepTest, StartErrorsAreOneLineWithExitCodeTwo) {
  WriteConfig("run", "absent.jsonl", kBase, 1, 1);
  auto learner = StartLearner("run", "127.0.0.1:1");
  EXPECT_EQ(learner->Wait(), 2);
  EXPECT_EQ(Log("run.log"), "error: cannot read the data set " + Path("absent.jsonl") + "\n");
}

}  // namespace
}  // namespace lockstep
