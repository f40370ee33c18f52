// run, pretrain, filter: the commands that own services.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/commands.h"
#include "client/config.h"
#include "client/launcher.h"
#include "client/view.h"
#include "proto/channel.h"
#include "proto/learner.grpc.pb.h"

namespace lockstep {
namespace {

constexpr double kStopSeconds = 600;  // a learner's last step and checkpoint, after Ctrl-C

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

// Follows the run until its learner has ended. Returns the exit code.
int Follow(Launcher& launcher) {
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
      return exit_code == 0 ? 0 : Fail(status);
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

int Launch(const v1::RunConfig& config, const LaunchOptions& options) {
  struct sigaction action = {};
  action.sa_handler = CountInterrupt;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  Launcher launcher(config, options);
  if (absl::Status status = launcher.Start(); !status.ok()) return Fail(status);
  const int code = Follow(launcher);
  launcher.EndAll(kStopSeconds);
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

}  // namespace

int RunCommand(const std::vector<std::string>& arguments) {
  const auto loaded = Load(arguments, "run CONFIG [key=value ...] [--resume] [--detach]", {"resume", "detach"});
  if (!loaded.ok()) return Fail(loaded.status(), 2);
  if (loaded->arguments.Has("detach")) {
    const int code = Detach(loaded->config.run_dir());
    if (code >= 0) return code;
  }
  LaunchOptions options;
  options.resume = loaded->arguments.Has("resume");
  return Launch(loaded->config, options);
}

int PretrainCommand(const std::vector<std::string>& arguments) {
  const auto loaded = Load(arguments, "pretrain CONFIG [key=value ...]", {});
  if (!loaded.ok()) return Fail(loaded.status(), 2);
  LaunchOptions options;
  options.mode = "pretrain";
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

}  // namespace lockstep
