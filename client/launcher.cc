#include "client/launcher.h"

#include <google/protobuf/text_format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
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
    return absl::Status(plan.status().code(),
                        absl::StrCat(plan.status().message(), absl::StrContains(plan.status().message(), "memory: ")
                                                                  ? "; --overcommit starts it all the same"
                                                                  : ""));
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

absl::Status Launcher::Tend(std::vector<std::string>* events, int* exit_code) {
  for (const std::unique_ptr<Child>& learner : learners_) {
    if (const std::optional<int> code = learner->Poll(); code.has_value()) {
      *exit_code = *code;
      return absl::AbortedError(learner->Reason());
    }
  }
  for (size_t i = 0; i < servers_.size(); ++i) {
    Server& server = servers_[i];
    if (server.child == nullptr) continue;
    if (server.child->Poll().has_value()) {
      events->push_back(server.child->Reason());
      if (++server.restarts > kMaxRestarts) {
        events->push_back(
            absl::StrCat(server.child->name(), " ended ", server.restarts, " times; the run goes on without it"));
        server.child = nullptr;
        continue;
      }
      events->push_back(absl::StrCat("restarting ", server.child->name()));
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
