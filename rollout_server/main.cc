// lockstep_rollout_server: flags, wiring, drain on SIGTERM; no logic.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/process.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/kernels/ops.h"
#include "engine/model/kv_plan.h"
#include "engine/tokenizer/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "proto/run_config.pb.h"
#include "rollout_server/cpu_backend.h"
#include "rollout_server/device_backend.h"
#include "rollout_server/server.h"
#include "weight_sync/process_transports.h"

ABSL_FLAG(std::string, config, "", "resolved RunConfig, as protobuf text");
ABSL_FLAG(int32_t, port, 0, "port of the Rollout service; 0 takes a free one");
ABSL_FLAG(std::string, bind, "127.0.0.1", "address to listen on");
ABSL_FLAG(std::string, address_file, "", "file that gets \"host:port\" once the server serves");
ABSL_FLAG(int32_t, metrics_port, 0, "port of /metrics; 0 takes a free one, -1 turns it off");
ABSL_FLAG(std::string, metrics_address_file, "", "file that gets \"host:port\" of /metrics");
ABSL_FLAG(int32_t, process, 0,
          "number of this process among the run's on this machine; chooses the GPU, modulo their number");
ABSL_FLAG(int32_t, parent_pid, 0, "process whose end drains this one; 0: none");
ABSL_FLAG(double, drain_seconds, 30, "how long a drain waits for samples in flight");

namespace lockstep {
namespace {

constexpr uint64_t kMaxConfigBytes = 16 << 20;

absl::StatusOr<v1::RunConfig> ReadConfig(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("--config is missing; it names the resolved run configuration");
  absl::StatusOr<std::string> text = ReadFile(path, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  v1::RunConfig config;
  if (!google::protobuf::TextFormat::ParseFromString(*text, &config)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a RunConfig in protobuf text form"));
  }
  const v1::RolloutConfig& rollout = config.rollout();
  if (config.model().path().empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": model.path is empty"));
  if (config.numerics() != "matched" && config.numerics() != "native") {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": numerics \"", config.numerics(), "\" is not matched or native"));
  }
  if (!config.device().empty() && config.device() != "cpu" && config.device() != "cuda") {
    return absl::InvalidArgumentError(absl::StrCat(path, ": device \"", config.device(), "\" is not cpu or cuda"));
  }
  if (rollout.threads() == 0 || rollout.max_batch_size() == 0 || rollout.prefill_chunk_tokens() == 0 ||
      rollout.max_groups_in_flight() == 0) {
    return absl::InvalidArgumentError(absl::StrCat(path,
                                                   ": rollout.threads, max_batch_size, prefill_chunk_tokens and "
                                                   "max_groups_in_flight must be at least 1"));
  }
  return config;
}

// What on_failure was told; OK: nothing.
class Failure {
 public:
  void Set(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    status_ = status;
  }
  absl::Status status() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  mutable std::mutex mutex_;
  absl::Status status_;
};

absl::StatusOr<std::unique_ptr<StepBackend>> MakeBackend(const v1::RunConfig& config, const ModelConfig& model,
                                                         DType dtype) {
  const v1::RolloutConfig& rollout = config.rollout();
  const int64_t longest = std::min<int64_t>(
      model.max_position_embeddings,
      std::max<int64_t>(config.data().max_prompt_tokens() + std::max(rollout.max_tokens(), config.eval().max_tokens()),
                        kPageTokens));
  const Numerics numerics = config.numerics() == "matched" ? Numerics::kMatched : Numerics::kNative;
  if (config.device() == "cuda") {
    DeviceBackendOptions options;
    options.config = model;
    options.dtype = dtype;
    options.numerics = numerics;
    options.kv_cache_mib = rollout.kv_cache_mib();
    options.max_decode_rows = rollout.max_batch_size();
    options.prefill_chunk_tokens = rollout.prefill_chunk_tokens();
    options.max_sequence_tokens = longest;
    return MakeDeviceBackend(options, absl::GetFlag(FLAGS_process));
  }
  const absl::StatusOr<int64_t> pages =
      PlanKvPages(model, dtype, rollout.kv_cache_mib(), rollout.max_batch_size(), longest);
  if (!pages.ok()) return pages.status();
  return MakeCpuBackend(model, dtype, *pages, MakeCpuOps(numerics, static_cast<int>(rollout.threads())));
}

absl::StatusOr<std::unique_ptr<RolloutServer>> StartFromFlags(StopSignal* stop, Failure* failure) {
  absl::StatusOr<v1::RunConfig> config = ReadConfig(absl::GetFlag(FLAGS_config));
  if (!config.ok()) return config.status();
  const v1::RolloutConfig& rollout = config->rollout();
  const absl::StatusOr<DType> dtype = ParseDType(rollout.dtype());
  if (!dtype.ok()) return dtype.status();
  absl::StatusOr<Transports> transports =
      ProcessTransports(config->weight_sync().transport(), absl::GetFlag(FLAGS_process), config->device() == "cuda");
  if (!transports.ok()) return transports.status();
  LoadOptions load;
  load.clamp = *dtype == DType::kF16 && config->model().clamp_fp16();
  load.progress = LogLoadProgress(config->model().path());
  absl::StatusOr<std::shared_ptr<Weights>> weights = LoadHfWeights(config->model().path(), *dtype, load);
  if (!weights.ok()) return weights.status();
  const ModelConfig& model = (*weights)->config;
  absl::StatusOr<std::unique_ptr<StepBackend>> backend = MakeBackend(*config, model, *dtype);
  if (!backend.ok()) return backend.status();

  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(config->model().path());
  if (!tokenizer.ok()) return tokenizer.status();
  if ((*tokenizer)->vocab_size() > model.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(config->model().path(), ": the tokenizer has ids up to ",
                                                   (*tokenizer)->vocab_size() - 1, ", and the model's embedding holds ",
                                                   model.vocab_size, "; they do not belong together"));
  }

  RolloutServerOptions options;
  options.tokenizer = *std::move(tokenizer);
  options.transports = *std::move(transports);
  options.bind = absl::GetFlag(FLAGS_bind);
  options.port = absl::GetFlag(FLAGS_port);
  options.metrics_port = absl::GetFlag(FLAGS_metrics_port);
  options.limits = {.max_decode_rows = rollout.max_batch_size(),
                    .prefill_chunk_tokens = rollout.prefill_chunk_tokens()};
  options.max_groups_in_flight = rollout.max_groups_in_flight();
  options.numerics = config->numerics();
  options.on_drain = [stop] { stop->Request("Drain call"); };
  options.on_failure = [stop, failure](const absl::Status& status) {
    failure->Set(status);
    stop->Request("the engine has failed");
  };
  const int64_t pages = (*backend)->num_pages();
  LogInfo("model ", config->model().path(), " (", model.architecture, ", ", (*weights)->bytes() >> 20, " MiB in ",
          std::string(DTypeName(*dtype)), "), KV cache of ", pages, " blocks (",
          pages * static_cast<int64_t>(KvStorage::BytesPerPage(model, *dtype)) >> 20, " MiB), ", config->numerics(),
          " numerics, ",
          config->device() == "cuda" ? std::string("on the GPU") : absl::StrCat(rollout.threads(), " threads"));
  return RolloutServer::Start(options, *std::move(backend), *weights);
}

absl::Status WriteAddressFiles(const RolloutServer& server) {
  if (const std::string path = absl::GetFlag(FLAGS_metrics_address_file); !path.empty()) {
    absl::Status status = WriteFileAtomically(path, absl::StrCat(server.metrics_address(), "\n"));
    if (!status.ok()) return status;
  }
  if (const std::string path = absl::GetFlag(FLAGS_address_file); !path.empty()) {
    return WriteFileAtomically(path, absl::StrCat(server.address(), "\n"));
  }
  return absl::OkStatus();
}

constexpr int kExitFailed = 1;
constexpr int kExitCannotStart = 2;

int Fail(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return exit_code;
}

int Main() {
  SetLogName("rollout");
  StopSignal stop;
  Failure failure;
  ParentWatch parent(absl::GetFlag(FLAGS_parent_pid), [&stop] { stop.Request("the parent process is gone"); });
  absl::StatusOr<std::unique_ptr<RolloutServer>> server = StartFromFlags(&stop, &failure);
  if (!server.ok()) return Fail(server.status(), DeviceExitCode(server.status(), kExitCannotStart));
  if (absl::Status status = WriteAddressFiles(**server); !status.ok()) return Fail(status, kExitCannotStart);
  LogInfo("serving on ", (*server)->address(), ", metrics on ", (*server)->metrics_address());
  stop.Wait();
  if (const absl::Status status = failure.status(); !status.ok())
    return Fail(status, DeviceExitCode(status, kExitFailed));
  LogInfo("draining: ", stop.reason());
  const bool clean = (*server)->Drain(absl::Seconds(absl::GetFlag(FLAGS_drain_seconds)));
  LogInfo(clean ? "drained" : "drain time is over; what is left is handed back");
  return 0;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("samples token sequences for groups of prompts, over gRPC");
  absl::ParseCommandLine(argc, argv);
  return lockstep::Main();
}
