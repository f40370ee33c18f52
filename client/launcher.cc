#include "client/launcher.h"

#include <google/protobuf/text_format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/config.h"
#include "client/memory_check.h"
#include "proto/channel.h"
#include "proto/learner.grpc.pb.h"

namespace lockstep {
namespace {

absl::Status WriteText(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::trunc);
  file << text;
  file.close();
  if (file.good()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("run_dir: cannot write ", path, ": ", std::strerror(errno)));
}

bool GpuFailed(int exit_code) { return exit_code == kExitRestartProcess || exit_code == kExitResetDevice; }

}  // namespace

Launcher::Launcher(v1::RunConfig config, LaunchOptions options)
    : config_(std::move(config)), options_(std::move(options)) {}

Launcher::~Launcher() { EndAll(10); }

absl::Status Launcher::PrepareFolder() {
  std::error_code error;
  std::filesystem::create_directories(Path("logs"), error);
  if (error) {
    return absl::UnavailableError(absl::StrCat("run_dir: cannot create ", Path("logs"), ": ", error.message()));
  }
  const bool has_ledger = std::filesystem::exists(Path("ledger.db"));
  if (options_.mode == "rl" && has_ledger && !options_.resume) {
    return absl::AlreadyExistsError(absl::StrCat("run_dir: ", config_.run_dir(),
                                                 " holds a run already; add --resume to go on with it, or name another "
                                                 "run_dir"));
  }
  if (options_.resume && !has_ledger) {
    return absl::NotFoundError(
        absl::StrCat("run_dir: ", config_.run_dir(), " holds no run to resume; leave out --resume"));
  }
  if (absl::Status status = WriteText(Path("config.yaml"), RunConfigToYaml(config_)); !status.ok()) return status;
  std::string text;
  google::protobuf::TextFormat::PrintToString(config_, &text);
  return WriteText(Path("config.pbtxt"), text);
}

absl::Status Launcher::CheckMemory() {
  const absl::StatusOr<std::string> plan =
      MemoryPlanLine(Path("config.pbtxt"), options_.mode, Path("logs/memory_plan.log"));
  if (!plan.ok() && !(options_.overcommit && absl::IsResourceExhausted(plan.status()))) {
    return absl::Status(
        plan.status().code(),
        absl::StrCat(plan.status().message(),
                     absl::IsResourceExhausted(plan.status()) ? "; --overcommit starts it all the same" : ""));
  }
  if (options_.note) options_.note(plan.ok() ? *plan : std::string(plan.status().message()));
  return absl::OkStatus();
}

int Launcher::Ranks() const {
  const bool trains = options_.mode == "rl" || options_.mode == "pretrain";
  return trains ? static_cast<int>(config_.learner().world_size()) : 1;
}

absl::Status Launcher::StartServer(int index) {
  const std::string name = absl::StrCat("rollout-", index);
  const absl::StatusOr<std::string> binary = FindBinary("lockstep_rollout_server");
  if (!binary.ok()) return binary.status();
  std::filesystem::remove(Path(name + ".address"));
  absl::StatusOr<Child> child = Child::Start(
      name, *binary,
      {absl::StrCat("--config=", Path("config.pbtxt")), absl::StrCat("--address_file=", Path(name + ".address")),
       absl::StrCat("--metrics_address_file=", Path(name + ".metrics")), absl::StrCat("--parent_pid=", getpid()),
       absl::StrCat("--process=", Ranks() + index)},
      Path("logs/" + name + ".log"));
  if (!child.ok()) return child.status();
  servers_[static_cast<size_t>(index)].child = std::make_unique<Child>(*std::move(child));
  return absl::OkStatus();
}

absl::Status Launcher::StartLearner(int rank, const std::string& rollout_addresses) {
  const std::string name = rank == 0 ? "learner" : absl::StrCat("learner-", rank);
  const absl::StatusOr<std::string> binary = FindBinary("lockstep_learner");
  if (!binary.ok()) return binary.status();
  std::filesystem::remove(Path(name + ".address"));
  std::vector<std::string> flags = {absl::StrCat("--config=", Path("config.pbtxt")),
                                    absl::StrCat("--mode=", options_.mode),
                                    absl::StrCat("--rank=", rank),
                                    absl::StrCat("--process=", rank),
                                    absl::StrCat("--address_file=", Path(name + ".address")),
                                    absl::StrCat("--metrics_address_file=", Path(name + ".metrics")),
                                    absl::StrCat("--parent_pid=", getpid())};
  if (!rollout_addresses.empty()) flags.push_back("--rollout_addresses=" + rollout_addresses);
  if (options_.resume) flags.push_back("--resume");
  if (rank > 0) flags.push_back("--rank0_address=" + learner_address_);
  flags.insert(flags.end(), options_.learner_flags.begin(), options_.learner_flags.end());
  absl::StatusOr<Child> child = Child::Start(name, *binary, flags, Path("logs/" + name + ".log"));
  if (!child.ok()) return child.status();
  learners_.push_back(std::make_unique<Child>(*std::move(child)));
  if (rank > 0) return absl::OkStatus();
  absl::StatusOr<std::string> address = WaitForAddress(*learners_[0], Path(name + ".address"), kStartSeconds);
  if (!address.ok()) return address.status();
  learner_address_ = *address;
  return absl::OkStatus();
}

absl::Status Launcher::Start() {
  if (absl::Status status = PrepareFolder(); !status.ok()) return status;
  if (absl::Status status = CheckMemory(); !status.ok()) return status;
  std::vector<std::string> addresses(config_.rollout().addresses().begin(), config_.rollout().addresses().end());
  const auto run = [&]() -> absl::Status {
    if (options_.mode != "pretrain" && addresses.empty()) {
      const int count = static_cast<int>(config_.rollout().num_servers());
      servers_.resize(static_cast<size_t>(count));
      for (int i = 0; i < count; ++i) {
        if (absl::Status status = StartServer(i); !status.ok()) return status;
      }
      for (int i = 0; i < count; ++i) {
        absl::StatusOr<std::string> address = WaitForAddress(
            *servers_[static_cast<size_t>(i)].child, Path(absl::StrCat("rollout-", i, ".address")), kStartSeconds);
        if (!address.ok()) return address.status();
        addresses.push_back(*address);
      }
    }
    for (int rank = 0; rank < Ranks(); ++rank) {
      if (absl::Status status = StartLearner(rank, absl::StrJoin(addresses, ",")); !status.ok()) return status;
    }
    return absl::OkStatus();
  };
  absl::Status status = run();
  if (!status.ok()) EndAll(2);
  return status;
}

absl::Status Launcher::Announce(const std::string& address) {
  const auto stub = v1::LearnerControl::NewStub(MakeChannel(learner_address_));
  grpc::ClientContext context;
  SetDeadline(context, 5);
  v1::AddRolloutServerRequest request;
  request.set_address(address);
  v1::AddRolloutServerResponse response;
  return ToAbslStatus(stub->AddRolloutServer(&context, request, &response));
}

std::string Launcher::WayOn() const {
  return options_.mode == "rl" ? "; lockstep run with --resume goes on from the last checkpoint" : "";
}

bool Launcher::HasServers() const {
  return std::any_of(servers_.begin(), servers_.end(), [](const Server& server) { return server.child != nullptr; });
}

void Launcher::Bury(Server& server, std::vector<std::string>* events) {
  events->push_back(server.child->Reason());
  const bool needs_reset = *server.child->Poll() == kExitResetDevice;
  if (needs_reset || ++server.restarts > kMaxRestarts) {
    const std::string name = server.child->name();
    server.child = nullptr;
    events->push_back(absl::StrCat(
        name,
        needs_reset ? "'s GPU cannot be used before it is reset" : absl::StrCat(" ended ", server.restarts, " times"),
        HasServers() ? "; the run goes on without it" : ""));
    return;
  }
  server.ended = true;
  const absl::Duration wait = server.restarts == 1 ? absl::ZeroDuration() : absl::Seconds(1 << (server.restarts - 2));
  server.restart_at = absl::Now() + wait;
}

absl::Status Launcher::Tend(std::vector<std::string>* events, int* exit_code) {
  const Child* ended = nullptr;
  for (const std::unique_ptr<Child>& learner : learners_) {
    const std::optional<int> code = learner->Poll();
    // Of several the one whose GPU failed: the others then have lost a rank.
    if (!code.has_value() || (ended != nullptr && !GpuFailed(*code))) continue;
    ended = learner.get();
    *exit_code = *code;
  }
  if (ended != nullptr) {
    return absl::AbortedError(absl::StrCat(ended->Reason(), GpuFailed(*exit_code) ? WayOn() : ""));
  }
  for (size_t i = 0; i < servers_.size(); ++i) {
    Server& server = servers_[i];
    if (server.child == nullptr) continue;
    if (!server.ended && server.child->Poll().has_value()) {
      const int code = *server.child->Poll();
      const std::string reason = server.child->Reason();
      Bury(server, events);
      if (!HasServers()) {
        *exit_code = code == 0 ? 1 : code;
        return absl::UnavailableError(absl::StrCat("no rollout server is left; the last: ", reason, WayOn()));
      }
      if (server.child == nullptr) continue;
    }
    if (server.ended && absl::Now() >= server.restart_at) {
      events->push_back(absl::StrCat("restarting ", server.child->name()));
      server.ended = false;
      server.announced = false;
      if (absl::Status status = StartServer(static_cast<int>(i)); !status.ok()) {
        events->push_back(std::string(status.message()));
      }
    }
    if (!server.announced) {
      const std::string address = FirstLine(Path(server.child->name() + ".address"));
      if (address.empty()) continue;
      const absl::Status status = Announce(address);
      server.announced = status.ok();
      events->push_back(status.ok()
                            ? absl::StrCat(server.child->name(), " is back at ", address)
                            : absl::StrCat("the learner does not take ", address, ": ", std::string(status.message())));
    }
  }
  return absl::OkStatus();
}

void Launcher::StopLearners() {
  for (const std::unique_ptr<Child>& learner : learners_) learner->Signal(SIGTERM);
}

void Launcher::EndAll(double learner_seconds) {
  StopLearners();
  for (const std::unique_ptr<Child>& learner : learners_) learner->End(learner_seconds);
  for (Server& server : servers_) {
    if (server.child != nullptr) server.child->Signal(SIGTERM);
  }
  for (Server& server : servers_) {
    if (server.child != nullptr) server.child->End(10);
  }
  learners_.clear();
  servers_.clear();
}

}  // namespace lockstep
