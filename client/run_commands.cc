// run, pretrain, filter, eval: the commands that own services.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/commands.h"
#include "client/config.h"
#include "client/launcher.h"
#include "client/view.h"
#include "proto/channel.h"
#include "proto/learner.grpc.pb.h"

namespace lockstep {
namespace {

constexpr double kStopSeconds = 600;     // a learner's last step and checkpoint, after Ctrl-C
constexpr double kLeftoverSeconds = 30;  // other ranks once one has failed: they wait for it, and end no step

volatile sig_atomic_t g_interrupts = 0;

void CountInterrupt(int) { g_interrupts = g_interrupts + 1; }

// Reads the learner's Watch stream on a thread of its own; Latest hands out what came since the last call.
class Watcher {
 public:
  explicit Watcher(const std::string& address) : stub_(v1::LearnerControl::NewStub(MakeChannel(address))) {
    thread_ = std::thread([this] {
      const auto reader = stub_->Watch(&context_, v1::WatchRequest());
      v1::RunStatus status;
      while (reader->Read(&status)) {
        const std::lock_guard<std::mutex> lock(mutex_);
        pending_.push_back(status);
        // A stopped terminal must not grow the queue: the newest states are enough.
        if (pending_.size() > kMaxPending) pending_.erase(pending_.begin());
      }
    });
  }
  ~Watcher() {
    context_.TryCancel();
    thread_.join();
  }
  std::vector<v1::RunStatus> Take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(pending_, {});
  }

 private:
  static constexpr size_t kMaxPending = 256;
  std::unique_ptr<v1::LearnerControl::Stub> stub_;
  grpc::ClientContext context_;
  std::mutex mutex_;
  std::vector<v1::RunStatus> pending_;
  std::thread thread_;
};

// Follows the run until its learner has ended. Returns the exit code, and the seconds that the processes left are
// worth.
int Follow(Launcher& launcher, double* end_seconds) {
  *end_seconds = kStopSeconds;
  View view(stdout, isatty(1) != 0);
  Watcher watcher(launcher.learner_address());
  int interrupts = 0;
  while (true) {
    for (const v1::RunStatus& status : watcher.Take()) view.Show(status);
    std::vector<std::string> events;
    int exit_code = 0;
    const absl::Status status = launcher.Tend(&events, &exit_code);
    for (const std::string& event : events) view.Note(event);
    if (!status.ok()) {
      for (const v1::RunStatus& last : watcher.Take()) view.Show(last);
      if (exit_code == 0) return 0;
      if (absl::IsAborted(status)) *end_seconds = kLeftoverSeconds;
      // Whoever starts runs can tell from the code whether the machine's GPU works again.
      return Fail(status, exit_code == kExitRestartProcess || exit_code == kExitResetDevice ? exit_code : 1);
    }
    if (g_interrupts > interrupts) {
      interrupts = g_interrupts;
      if (interrupts > 1) {
        view.Note("ending at once; the last checkpoint stays");
        launcher.EndAll(0);
        return 130;
      }
      view.Note("stopping after the step in progress, with a checkpoint; Ctrl-C again ends at once");
      launcher.StopLearners();
    }
    absl::SleepFor(absl::Milliseconds(100));
  }
}

// The rest of this process goes on as the run's supervisor, without the terminal. The caller's copy waits until the
// learner serves and returns the exit code; the supervisor gets -1.
int Detach(const std::string& run_dir) {
  std::error_code error;
  std::filesystem::create_directories(run_dir + "/logs", error);
  std::filesystem::remove(run_dir + "/learner.address", error);
  const std::string log = run_dir + "/logs/client.log";
  const pid_t pid = fork();
  if (pid < 0) return Fail(absl::UnavailableError("cannot start the supervisor process"));
  if (pid == 0) {
    setsid();
    const int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, 0);
    dup2(out, 1);
    dup2(out, 2);
    return -1;
  }
  Child supervisor = Child::Adopt("client", pid, log);
  const absl::StatusOr<std::string> address =
      WaitForAddress(supervisor, run_dir + "/learner.address", 2 * kStartSeconds);
  if (!address.ok()) return Fail(address.status());
  std::printf("the run goes on in the background (learner at %s); lockstep watch %s\n", address->c_str(),
              run_dir.c_str());
  return 0;
}

int Launch(const v1::RunConfig& config, LaunchOptions options) {
  options.note = [](const std::string& line) {
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  };
  struct sigaction action = {};
  action.sa_handler = CountInterrupt;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  Launcher launcher(config, options);
  if (absl::Status status = launcher.Start(); !status.ok()) return Fail(status);
  double end_seconds = 0;
  const int code = Follow(launcher, &end_seconds);
  launcher.EndAll(end_seconds);
  return code;
}

struct Loaded {
  Arguments arguments;
  v1::RunConfig config;
};

absl::StatusOr<Loaded> Load(const std::vector<std::string>& arguments, const std::string& usage,
                            const std::vector<std::string>& flags) {
  absl::StatusOr<Arguments> split = SplitArguments(arguments, flags);
  if (!split.ok()) return split.status();
  if (split->words.empty()) return absl::InvalidArgumentError(absl::StrCat("usage: lockstep ", usage));
  const std::vector<std::string> overrides(split->words.begin() + 1, split->words.end());
  absl::StatusOr<v1::RunConfig> config = LoadRunConfig(split->words[0], overrides);
  if (!config.ok()) return config.status();
  if (absl::Status status = CheckRunFiles(*config, true); !status.ok()) return status;
  return Loaded{*std::move(split), *std::move(config)};
}

// eval: the config of a run file, or the defaults, with the flags as its keys.
absl::StatusOr<Loaded> LoadEval(const std::vector<std::string>& arguments) {
  const std::pair<const char*, const char*> keys[] = {{"model", "model.path"},
                                                      {"data", "data.eval"},
                                                      {"reward", "data.reward"},
                                                      {"n", "eval.n"},
                                                      {"temperature", "eval.temperature"},
                                                      {"top_p", "eval.top_p"},
                                                      {"max_tokens", "eval.max_tokens"},
                                                      {"limit", "eval.max_problems"},
                                                      {"seed", "seed"}};
  std::vector<std::string> flags = {"out="};
  for (const auto& [flag, key] : keys) flags.push_back(absl::StrCat(flag, "="));
  absl::StatusOr<Arguments> split = SplitArguments(arguments, flags);
  if (!split.ok()) return split.status();
  std::string file;
  std::vector<std::string> overrides;
  for (const std::string& word : split->words) {
    if (word.find('=') != std::string::npos) {
      overrides.push_back(word);
    } else if (file.empty()) {
      file = word;
    } else {
      return absl::InvalidArgumentError(absl::StrCat("eval: '", word, "' is neither key=value nor the one CONFIG"));
    }
  }
  for (const auto& [flag, key] : keys) {
    if (split->Has(flag)) overrides.push_back(absl::StrCat(key, "=", split->Get(flag)));
  }
  absl::StatusOr<v1::RunConfig> config =
      file.empty() ? ParseRunConfig("run_dir: runs", "command line", overrides) : LoadRunConfig(file, overrides);
  if (!config.ok()) return config.status();
  if (absl::Status status = CheckModelFolder(*config, true); !status.ok()) return status;
  if (absl::Status status = CheckDataFile("data.eval", config->data().eval()); !status.ok()) return status;
  config->set_run_dir(config->run_dir() + "/eval");  // the files of a run stay as they are
  return Loaded{*std::move(split), *std::move(config)};
}

absl::Status PrintEvalTable(const std::string& path) {
  std::ifstream file(path);
  const auto report = nlohmann::ordered_json::parse(file, nullptr, /*allow_exceptions=*/false);
  const auto results = report.is_object() ? report.find("results") : report.end();
  if (!report.is_object() || results == report.end() || !results->is_object()) {
    return absl::DataLossError(absl::StrCat(path, " was not written"));
  }
  for (const auto& [name, value] : results->items()) {
    const std::string text = value.is_number_float() ? absl::StrFormat("%.4f", value.get<double>()) : value.dump();
    std::printf("  %-24s %s\n", name.c_str(), text.c_str());
  }
  std::printf("  the same figures, and each problem's: %s\n", path.c_str());
  return absl::OkStatus();
}

}  // namespace

int RunCommand(const std::vector<std::string>& arguments) {
  const auto loaded = Load(arguments, "run CONFIG [key=value ...] [--resume] [--detach] [--overcommit]",
                           {"resume", "detach", "overcommit"});
  if (!loaded.ok()) return Fail(loaded.status(), 2);
  if (loaded->arguments.Has("detach")) {
    const int code = Detach(loaded->config.run_dir());
    if (code >= 0) return code;
  }
  LaunchOptions options;
  options.resume = loaded->arguments.Has("resume");
  options.overcommit = loaded->arguments.Has("overcommit");
  return Launch(loaded->config, options);
}

int PretrainCommand(const std::vector<std::string>& arguments) {
  const auto loaded = Load(arguments, "pretrain CONFIG [key=value ...] [--overcommit]", {"overcommit"});
  if (!loaded.ok()) return Fail(loaded.status(), 2);
  LaunchOptions options;
  options.mode = "pretrain";
  options.overcommit = loaded->arguments.Has("overcommit");
  return Launch(loaded->config, options);
}

int FilterCommand(const std::vector<std::string>& arguments) {
  const auto loaded =
      Load(arguments, "filter CONFIG [key=value ...] --out=FILE", {"out=", "samples=", "low=", "high="});
  if (!loaded.ok()) return Fail(loaded.status(), 2);
  const Arguments& flags = loaded->arguments;
  if (flags.Get("out").empty()) return Usage("filter needs --out=FILE for the problems that it keeps");
  LaunchOptions options;
  options.mode = "filter";
  options.learner_flags = {"--filter_out=" + flags.Get("out"), "--filter_samples=" + flags.Get("samples", "16"),
                           "--filter_low=" + flags.Get("low", "0.2"), "--filter_high=" + flags.Get("high", "0.8")};
  return Launch(loaded->config, options);
}

int EvalCommand(const std::vector<std::string>& arguments) {
  const auto loaded = LoadEval(arguments);
  if (!loaded.ok()) return Fail(loaded.status(), 2);
  const std::string out = loaded->arguments.Get("out", loaded->config.run_dir() + "/eval.json");
  LaunchOptions options;
  options.mode = "eval";
  options.learner_flags = {"--eval_out=" + out};
  if (const int code = Launch(loaded->config, options); code != 0) return code;
  const absl::Status status = PrintEvalTable(out);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace lockstep
