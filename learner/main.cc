// lockstep_learner: flags, wiring, ends; no logic. Modes:
//   rl        reinforcement learning against rollout servers
//   pretrain  supervised training on prompt and response
//   filter    keeps the problems whose pass rate is between two thresholds
//   eval      evaluates model.path on data.eval
// Exit codes: 0 done or stopped on request; 1 the run failed (one line `error: ...`); 2 it could not start; 3
// (plan_only) the memory is too small; 75 and 69: an error of the GPU (engine/cuda/errors).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/metrics.h"
#include "engine/base/process.h"
#include "learner/control_service.h"
#include "learner/device_engine.h"
#include "learner/eval_mode.h"
#include "learner/filter.h"
#include "learner/join_ranks.h"
#include "learner/memory_plan.h"
#include "learner/pretrain.h"
#include "learner/run_loop.h"
#include "learner/run_start.h"
#include "learner/setup.h"
#include "learner/tensorboard_log.h"
#include "proto/channel.h"
#include "weight_sync/process_transports.h"
#include "weight_sync/publisher.h"

ABSL_FLAG(std::string, config, "", "resolved RunConfig, as protobuf text");
ABSL_FLAG(std::string, mode, "rl", "rl, pretrain, filter or eval");
ABSL_FLAG(bool, plan_only, false,
          "print what the mode's processes will take of memory, and end; 3 when it is too much");
ABSL_FLAG(bool, resume, false, "go on from the run folder's latest checkpoint");
ABSL_FLAG(int32_t, rank, 0, "rank of this process among learner.world_size");
ABSL_FLAG(int32_t, process, 0,
          "number of this process among the run's on this machine; chooses the GPU, modulo their number");
ABSL_FLAG(std::string, rank0_address, "", "host:port of rank 0; for ranks above 0");
ABSL_FLAG(std::string, rollout_addresses, "", "host:port of the rollout servers, comma-separated");
ABSL_FLAG(double, servers_timeout_seconds, 120, "how long to wait for a rollout server, at the start and in the run");
ABSL_FLAG(int32_t, port, 0, "port of LearnerControl and WeightSource; 0 takes a free one");
ABSL_FLAG(std::string, bind, "127.0.0.1", "address to listen on");
ABSL_FLAG(std::string, advertise_address, "", "host:port under which rollout servers reach this process; empty: bind");
ABSL_FLAG(std::string, address_file, "", "file that gets \"host:port\" once the process serves");
ABSL_FLAG(int32_t, metrics_port, 0, "port of /metrics; 0 takes a free one, -1 turns it off");
ABSL_FLAG(std::string, metrics_address_file, "", "file that gets \"host:port\" of /metrics");
ABSL_FLAG(int32_t, parent_pid, 0, "process whose end ends this one; 0: none");
ABSL_FLAG(int32_t, filter_samples, 16, "filter: samples a problem");
ABSL_FLAG(double, filter_low, 0.2, "filter: smallest pass rate that is kept");
ABSL_FLAG(double, filter_high, 0.8, "filter: largest pass rate that is kept");
ABSL_FLAG(std::string, filter_out, "", "filter: file to write");
ABSL_FLAG(std::string, eval_out, "", "eval: JSON file to write");

namespace lockstep {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitCannotStart = 2;
constexpr int kExitTooMuchMemory = 3;  // of plan_only, which a client may overrule
// Lets watchers read the last message.
constexpr absl::Duration kShutdownGrace = absl::Seconds(3);

int PrintError(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return exit_code;
}

// What rank 0 holds, in the order in which it is taken apart from the end.
struct Rank0 {
  LearnerSetup setup;
  std::vector<std::string> rollout_addresses;
  StopSignal* stop = nullptr;
  MetricsRegistry metrics{"learner"};
  std::unique_ptr<MetricsServer> metrics_server;
  std::unique_ptr<RunMonitor> monitor;
  std::unique_ptr<WeightPublisher> publisher;
  std::unique_ptr<RolloutClient> rollouts;
  std::unique_ptr<v1::LearnerControl::Service> control;
  ListeningServer listening;
  std::unique_ptr<Collectives> collectives;
  std::unique_ptr<Trainer> trainer;
  std::unique_ptr<RankLeader> ranks;
  std::unique_ptr<Checkpoints> checkpoints;
  std::unique_ptr<Ledger> ledger;
  RunPosition position;
};

absl::Status StartMetrics(MetricsRegistry* metrics, std::unique_ptr<MetricsServer>* server) {
  const int port = absl::GetFlag(FLAGS_metrics_port);
  if (port < 0) return absl::OkStatus();
  auto started = MetricsServer::Start(metrics, absl::GetFlag(FLAGS_bind), port);
  if (!started.ok()) return started.status();
  *server = *std::move(started);
  const std::string file = absl::GetFlag(FLAGS_metrics_address_file);
  return file.empty() ? absl::OkStatus() : WriteFileAtomically(file, (*server)->address() + "\n");
}

absl::Status StartServices(Rank0* rank0) {
  const LearnerSetup& setup = rank0->setup;
  rank0->monitor =
      std::make_unique<RunMonitor>(setup.run_id, setup.config.run_dir(), setup.config.trainer().max_steps());
  WeightPublisherOptions publisher;
  publisher.config = setup.model;
  publisher.dtype = setup.rollout_dtype;
  publisher.sync = setup.config.weight_sync();
  publisher.metrics = &rank0->metrics;
  absl::StatusOr<Transports> transports =
      ProcessTransports(publisher.sync.transport(), setup.process, setup.config.device() == "cuda");
  if (!transports.ok()) return transports.status();
  publisher.transports = *std::move(transports);
  rank0->publisher = MakeWeightPublisher(publisher);
  if (setup.mode != LearnerMode::kPretrain) {
    RolloutClientOptions options;
    options.model_hash = setup.model.Hash();
    options.dtype = setup.config.rollout().dtype();
    options.routing = RoutingShape(setup.model);
    if (const float timeout = setup.config.rollout().group_timeout_seconds(); timeout > 0) {
      options.group_timeout = absl::Seconds(timeout);
    }
    options.dead_timeout = absl::Seconds(absl::GetFlag(FLAGS_servers_timeout_seconds));
    options.catch_up = [publisher = rank0->publisher.get()](const std::string& address) {
      return publisher->CatchUp(address);
    };
    rank0->rollouts = std::make_unique<RolloutClient>(options, rank0->rollout_addresses, &rank0->metrics);
  }
  std::function<void(const std::string&)> add_server;
  if (rank0->rollouts != nullptr) {
    add_server = [client = rank0->rollouts.get()](const std::string& address) { client->AddServer(address); };
  }
  rank0->control = MakeControlService(rank0->monitor.get(), std::move(add_server));
  EnableHealthAndReflection();
  grpc::ServerBuilder builder;
  builder.RegisterService(rank0->control.get());
  builder.RegisterService(rank0->publisher->service());
  auto listening = StartServer(builder, absl::GetFlag(FLAGS_bind), absl::GetFlag(FLAGS_port));
  if (!listening.ok()) return listening.status();
  rank0->listening = *std::move(listening);
  SetServing(*rank0->listening.server, "", true);
  const std::string advertised = absl::GetFlag(FLAGS_advertise_address);
  rank0->publisher->SetSourceAddress(advertised.empty() ? rank0->listening.address : advertised);
  if (absl::Status status = StartMetrics(&rank0->metrics, &rank0->metrics_server); !status.ok()) return status;
  const std::string file = absl::GetFlag(FLAGS_address_file);
  return file.empty() ? absl::OkStatus() : WriteFileAtomically(file, rank0->listening.address + "\n");
}

// Trainer with its state, from the latest checkpoint or from model.path.
absl::Status PrepareTraining(Rank0* rank0) {
  const LearnerSetup& setup = rank0->setup;
  auto collectives = JoinRanks(setup.config, 0, rank0->listening.address, setup.process);
  if (!collectives.ok()) return collectives.status();
  rank0->collectives = *std::move(collectives);
  auto trainer = MakeTrainer(setup, rank0->collectives.get());
  if (!trainer.ok()) return trainer.status();
  rank0->trainer = *std::move(trainer);
  rank0->ranks = std::make_unique<RankLeader>(rank0->collectives.get());
  rank0->checkpoints = std::make_unique<Checkpoints>(
      setup.RunFile("checkpoints"), setup.model, setup.learner_dtype, setup.config.model().path(),
      static_cast<int>(setup.config.trainer().keep_checkpoints()), &rank0->metrics);
  // The reference of a KL penalty is what the run started from, also when it is resumed.
  const bool needs_reference = rank0->trainer->needs_reference();
  if (needs_reference) {
    if (absl::Status status = LoadInitialWeights(setup, *rank0->trainer); !status.ok()) return status;
    if (absl::Status status = rank0->trainer->CaptureReference(); !status.ok()) return status;
  }
  bool restored = needs_reference;
  if (absl::GetFlag(FLAGS_resume)) {
    auto position = rank0->checkpoints->LoadLatest(*rank0->trainer);
    if (position.ok()) {
      rank0->position = *position;
      restored = true;
    } else if (!absl::IsNotFound(position.status())) {
      return position.status();
    }
  }
  if (!restored) {
    if (absl::Status status = LoadInitialWeights(setup, *rank0->trainer); !status.ok()) return status;
  }
  return rank0->trainer->BroadcastState();
}

// Ledger and epoch: from here on an older learner of the same run folder is fenced out.
absl::StatusOr<uint64_t> OpenLedger(Rank0* rank0) {
  const std::string path = rank0->setup.RunFile("ledger.db");
  auto ledger = Ledger::Open(path);
  if (!ledger.ok()) return ledger.status();
  rank0->ledger = *std::move(ledger);
  auto last = rank0->ledger->LastStep();
  if (!last.ok()) return last.status();
  if (*last > 0 && !absl::GetFlag(FLAGS_resume)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " holds a run of ", *last, " steps; resume it, or choose another run_dir"));
  }
  auto epoch = rank0->ledger->BeginEpoch();
  if (!epoch.ok()) return epoch.status();
  auto rolled_back = rank0->ledger->Resume(rank0->position.step);
  if (!rolled_back.ok()) return rolled_back.status();
  if (*rolled_back > 0) {
    LogInfo("steps ", rank0->position.step + 1, "..", *last,
            " came after the checkpoint and are done again, with their ", "samples of before");
  }
  return epoch;
}

// How a run may end: it could not start, or it ran to `status`.
struct Outcome {
  absl::Status status;
  bool started = false;
};

Outcome Reinforce(Rank0* rank0) {
  if (absl::Status status = PrepareTraining(rank0); !status.ok()) return {status};
  auto epoch = OpenLedger(rank0);
  if (!epoch.ok()) return {epoch.status()};
  auto metrics_file = MetricsFile::Open(rank0->setup.RunFile("metrics.jsonl"), rank0->position.step);
  if (!metrics_file.ok()) return {metrics_file.status()};
  TensorBoardLog tensorboard(rank0->setup.config.run_dir(), rank0->position.step, /*supervised=*/false);
  RecordStart(rank0->setup.config.run_dir(), "rl", *epoch, rank0->position.step);
  RunLoopParts parts;
  parts.config = rank0->setup.config;
  parts.run_id = rank0->setup.run_id;
  parts.epoch = *epoch;
  parts.position = rank0->position;
  parts.stop_token_ids = rank0->setup.stop_token_ids;
  parts.routing = RoutingShape(rank0->setup.model);
  parts.tokenizer = rank0->setup.tokenizer.get();
  parts.problems = &rank0->setup.problems;
  parts.eval_problems = &rank0->setup.eval_problems;
  parts.trainer = rank0->trainer.get();
  parts.ranks = rank0->ranks.get();
  parts.ledger = rank0->ledger.get();
  parts.rollouts = rank0->rollouts.get();
  parts.publisher = rank0->publisher.get();
  parts.checkpoints = rank0->checkpoints.get();
  parts.metrics_file = &*metrics_file;
  parts.tensorboard = &tensorboard;
  parts.monitor = rank0->monitor.get();
  parts.metrics = &rank0->metrics;
  parts.terminated = [stop = rank0->stop] { return stop->stopped(); };
  auto loop = RunLoop::Create(std::move(parts));
  if (!loop.ok()) return {loop.status()};
  absl::Status status = rank0->rollouts->WaitForServers(absl::Seconds(absl::GetFlag(FLAGS_servers_timeout_seconds)));
  if (!status.ok()) return {status};
  rank0->metrics.SetState("serving");
  return {loop->Run(), true};
}

Outcome RunPretrain(Rank0* rank0) {
  if (absl::Status status = PrepareTraining(rank0); !status.ok()) return {status};
  auto metrics_file = MetricsFile::Open(rank0->setup.RunFile("metrics.jsonl"), rank0->position.step);
  if (!metrics_file.ok()) return {metrics_file.status()};
  TensorBoardLog tensorboard(rank0->setup.config.run_dir(), rank0->position.step, /*supervised=*/true);
  RecordStart(rank0->setup.config.run_dir(), "pretrain", /*epoch=*/0, rank0->position.step);
  PretrainParts parts;
  parts.config = rank0->setup.config;
  parts.position = rank0->position;
  parts.problems = &rank0->setup.problems;
  parts.trainer = rank0->trainer.get();
  parts.ranks = rank0->ranks.get();
  parts.checkpoints = rank0->checkpoints.get();
  parts.metrics_file = &*metrics_file;
  parts.tensorboard = &tensorboard;
  parts.monitor = rank0->monitor.get();
  parts.metrics = &rank0->metrics;
  parts.terminated = [stop = rank0->stop] { return stop->stopped(); };
  rank0->metrics.SetState("serving");
  return {Pretrain(parts), true};
}

Outcome RunFilter(Rank0* rank0) {
  absl::Status status = rank0->rollouts->WaitForServers(absl::Seconds(absl::GetFlag(FLAGS_servers_timeout_seconds)));
  if (!status.ok()) return {status};
  FilterParts parts;
  parts.config = rank0->setup.config;
  parts.run_id = rank0->setup.run_id;
  parts.samples = static_cast<uint32_t>(std::max(0, absl::GetFlag(FLAGS_filter_samples)));
  parts.low = absl::GetFlag(FLAGS_filter_low);
  parts.high = absl::GetFlag(FLAGS_filter_high);
  parts.out = absl::GetFlag(FLAGS_filter_out);
  parts.stop_token_ids = rank0->setup.stop_token_ids;
  parts.tokenizer = rank0->setup.tokenizer.get();
  parts.problems = &rank0->setup.problems;
  parts.rollouts = rank0->rollouts.get();
  parts.monitor = rank0->monitor.get();
  parts.terminated = [stop = rank0->stop] { return stop->stopped(); };
  rank0->metrics.SetState("serving");
  return {FilterProblems(parts), true};
}

Outcome RunEval(Rank0* rank0) {
  absl::Status status = rank0->rollouts->WaitForServers(absl::Seconds(absl::GetFlag(FLAGS_servers_timeout_seconds)));
  if (!status.ok()) return {status};
  EvalModeParts parts;
  parts.config = rank0->setup.config;
  parts.run_id = rank0->setup.run_id;
  parts.out = absl::GetFlag(FLAGS_eval_out);
  parts.stop_token_ids = rank0->setup.stop_token_ids;
  parts.tokenizer = rank0->setup.tokenizer.get();
  parts.problems = &rank0->setup.eval_problems;
  parts.rollouts = rank0->rollouts.get();
  parts.monitor = rank0->monitor.get();
  parts.terminated = [stop = rank0->stop] { return stop->stopped(); };
  rank0->metrics.SetState("serving");
  return {EvaluateModel(parts), true};
}

int RunRank0(const v1::RunConfig& config, LearnerMode mode, StopSignal* stop) {
  auto setup = LoadLearnerSetup(config, mode, /*with_data=*/true);
  if (!setup.ok()) return PrintError(setup.status(), kExitCannotStart);
  setup->process = absl::GetFlag(FLAGS_process);
  Rank0 rank0;
  rank0.setup = *std::move(setup);
  rank0.stop = stop;
  rank0.rollout_addresses = absl::StrSplit(absl::GetFlag(FLAGS_rollout_addresses), ',', absl::SkipEmpty());
  if (rank0.rollout_addresses.empty()) {
    rank0.rollout_addresses = {config.rollout().addresses().begin(), config.rollout().addresses().end()};
  }
  if (mode != LearnerMode::kPretrain && rank0.rollout_addresses.empty()) {
    return PrintError(absl::InvalidArgumentError("--rollout_addresses is empty; name at least one rollout server"),
                      kExitCannotStart);
  }
  if (absl::Status status = StartServices(&rank0); !status.ok()) return PrintError(status, kExitCannotStart);
  LogInfo("serving on ", rank0.listening.address);
  const Outcome outcome = mode == LearnerMode::kReinforce  ? Reinforce(&rank0)
                          : mode == LearnerMode::kPretrain ? RunPretrain(&rank0)
                          : mode == LearnerMode::kFilter   ? RunFilter(&rank0)
                                                           : RunEval(&rank0);
  const int exit_code =
      outcome.status.ok() ? 0 : DeviceExitCode(outcome.status, outcome.started ? kExitFailed : kExitCannotStart);
  rank0.metrics.SetState(outcome.status.ok() ? "draining" : "failed");
  rank0.monitor->Publish([&](v1::RunStatus& status) {
    status.set_phase(outcome.status.ok() ? v1::RUN_PHASE_ENDED : v1::RUN_PHASE_FAILED);
    if (!outcome.status.ok()) status.set_message(absl::StrCat("learner: ", std::string(outcome.status.message())));
    status.set_ended(true);
    status.set_exit_code(exit_code);
    status.set_seconds_left(0);
  });
  rank0.listening.server->Shutdown(absl::ToChronoTime(absl::Now() + kShutdownGrace));
  return outcome.status.ok() ? 0 : PrintError(outcome.status, exit_code);
}

int RunFollower(const v1::RunConfig& config, LearnerMode mode, int rank) {
  if (rank >= static_cast<int>(config.learner().world_size()) || mode == LearnerMode::kFilter ||
      mode == LearnerMode::kEval) {
    return PrintError(
        absl::InvalidArgumentError(absl::StrCat("--rank is ", rank, ", learner.world_size ",
                                                config.learner().world_size(), ", mode ", absl::GetFlag(FLAGS_mode))),
        kExitCannotStart);
  }
  auto setup = LoadLearnerSetup(config, mode, /*with_data=*/false);
  if (!setup.ok()) return PrintError(setup.status(), kExitCannotStart);
  setup->process = absl::GetFlag(FLAGS_process);
  MetricsRegistry metrics("learner");
  std::unique_ptr<MetricsServer> metrics_server;
  if (absl::Status status = StartMetrics(&metrics, &metrics_server); !status.ok()) {
    return PrintError(status, kExitCannotStart);
  }
  auto collectives = JoinRanks(config, rank, absl::GetFlag(FLAGS_rank0_address), setup->process);
  if (!collectives.ok()) return PrintError(collectives.status(), kExitCannotStart);
  auto trainer = MakeTrainer(*setup, collectives->get());
  if (!trainer.ok()) return PrintError(trainer.status(), DeviceExitCode(trainer.status(), kExitCannotStart));
  metrics.SetState("serving");
  LogInfo("rank ", rank, " follows ", absl::GetFlag(FLAGS_rank0_address));
  const absl::Status status = FollowRank0(**trainer, **collectives);
  return status.ok() ? 0 : PrintError(status, DeviceExitCode(status, kExitFailed));
}

int PrintPlanError(const absl::Status& status) {
  return PrintError(status, absl::IsResourceExhausted(status) ? kExitTooMuchMemory : kExitCannotStart);
}

int PrintMemoryPlan(const v1::RunConfig& config, LearnerMode mode) {
  const bool trains = mode == LearnerMode::kReinforce || mode == LearnerMode::kPretrain;
  const bool uses_devices = config.device() == "cuda" && (trains || config.rollout().addresses().empty());
  if (uses_devices) {  // before anything is read: without a device nothing else matters
    const auto device = FindTrainDevice(absl::GetFlag(FLAGS_process));
    if (!device.ok()) return PrintError(device.status(), kExitCannotStart);
  }
  if (mode == LearnerMode::kReinforce) {
    const auto transports =
        ProcessTransports(config.weight_sync().transport(), absl::GetFlag(FLAGS_process), config.device() == "cuda");
    if (!transports.ok()) return PrintError(transports.status(), kExitCannotStart);
  }
  const auto inputs = ReadMemoryInputs(config, mode);
  if (!inputs.ok()) return PrintError(inputs.status(), kExitCannotStart);
  const auto plan = PlanMemory(*inputs);
  if (!plan.ok()) return PrintPlanError(plan.status());
  const MachineMemory machine = ReadMachineMemory();
  DevicePlan devices;
  if (uses_devices) {
    const auto device_inputs = DeviceInputs(*inputs);
    if (!device_inputs.ok()) return PrintError(device_inputs.status(), kExitCannotStart);
    auto planned = PlanDevices(*device_inputs);
    if (!planned.ok()) return PrintPlanError(planned.status());
    devices = *std::move(planned);
    devices.placement.ranks_use_nccl = RanksUseNccl(config);
    if (absl::Status status = CheckPlacement(devices.placement, config); !status.ok()) return PrintPlanError(status);
  }
  // Last: what comes before cannot be overruled.
  if (absl::Status status = CheckMemory(*plan, machine); !status.ok()) return PrintPlanError(status);
  if (absl::Status status = CheckDevices(devices, config); !status.ok()) return PrintPlanError(status);
  const std::string text = devices.devices.empty() ? "" : "; " + devices.Text();
  std::printf("memory: %s; %s%s\n%s\n", plan->Text().c_str(), AvailableText(machine).c_str(), text.c_str(),
              plan->Json(&devices).c_str());
  return 0;
}

int Main() {
  const int rank = absl::GetFlag(FLAGS_rank);
  SetLogName(rank == 0 ? "learner" : absl::StrCat("learner-", rank));
  StopSignal stop;
  ParentWatch parent(absl::GetFlag(FLAGS_parent_pid), [&stop] { stop.Request("the parent process is gone"); });
  auto config = ReadRunConfig(absl::GetFlag(FLAGS_config));
  if (!config.ok()) return PrintError(config.status(), kExitCannotStart);
  auto mode = ParseLearnerMode(absl::GetFlag(FLAGS_mode));
  if (!mode.ok()) return PrintError(mode.status(), kExitCannotStart);
  if (absl::GetFlag(FLAGS_plan_only)) return PrintMemoryPlan(*config, *mode);
  return rank == 0 ? RunRank0(*config, *mode, &stop) : RunFollower(*config, *mode, rank);
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("trains a model: reinforcement learning or supervised; filters a data set; evaluates");
  absl::ParseCommandLine(argc, argv);
  return lockstep::Main();
}
