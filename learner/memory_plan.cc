#include "learner/memory_plan.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/kernels/packed_matrix.h"
#include "engine/model/decoder.h"
#include "engine/model/kv_plan.h"
#include "engine/model/low_rank.h"
#include "engine/model/paged_logits.h"
#include "learner/collectives_nccl.h"
#include "learner/micro_batch.h"
#include "weight_sync/bucket_plan.h"

namespace lockstep {
namespace {

// A process with its libraries, gRPC's threads and buffers, metrics, ledger cache: measured with a tiny model.
constexpr uint64_t kProcessBytes = uint64_t{32} << 20;
// Tables that a tokenizer.json of a byte in the file becomes in memory, and its parse on the way there.
constexpr uint64_t kTokenizerFactor = 12;
// A problem is kept as its line and as tokens of 4 bytes, of which a byte of text makes at most one.
constexpr uint64_t kDataFactor = 6;
// A block of FP32 rows on the way from a file (engine/checkpoint).
constexpr uint64_t kLoadBlockBytes = uint64_t{8} << 20;
// Pinned blocks on the way to a device (engine/cuda/arena.h).
constexpr uint64_t kStagingBytes = uint64_t{16} << 20;
// A token of a sample that waits for its step: id, log-prob and weight version, in the ledger's row, the assembly and
// the batch.
constexpr uint64_t kSampleTokenBytes = 64;
// Its routing: in the assembly, the batch, and the message to the other ranks.
constexpr uint64_t kRoutingCopies = 3;

// What a Buffer takes (engine/tensor/tensor.cc): from 4 MiB on whole huge pages, else whole cache lines.
uint64_t BufferBytes(uint64_t bytes) {
  constexpr uint64_t kHugePage = uint64_t{2} << 20;
  const uint64_t unit = bytes >= 2 * kHugePage ? kHugePage : 64;
  return (bytes + unit - 1) / unit * unit;
}

int64_t LongestSample(const MemoryInputs& in) {
  const int64_t response = in.mode == LearnerMode::kPretrain ? 0 : in.config.rollout().max_tokens();
  return std::min<int64_t>(in.model.max_position_embeddings, in.config.data().max_prompt_tokens() + response);
}

// Tokens of the largest micro-batch: as many as configured, no more than shares a step among the ranks, and a sample
// that is longer is one by itself.
int64_t LargestMicroBatch(const MemoryInputs& in) {
  const int64_t micro = in.config.learner().micro_batch_tokens();
  if (in.mode == LearnerMode::kPretrain) return micro;  // lines may be as long as the model allows: the common case
  const int64_t samples = int64_t{in.config.trainer().prompts_per_step()} * in.config.rollout().n();
  const int64_t step = (samples * LongestSample(in) + in.config.learner().world_size() - 1) /
                       std::max<int64_t>(1, in.config.learner().world_size());
  return std::max(std::min(micro, step), LongestSample(in));
}

// Elements of the adapters; 0 without lora.rank.
absl::StatusOr<int64_t> AdapterElements(const MemoryInputs& in) {
  const v1::LoraConfig& lora = in.config.lora();
  if (lora.rank() == 0) return 0;
  const auto layout = MakeLowRankLayout(in.model, lora.rank(), lora.alpha(),
                                        {lora.target_modules().begin(), lora.target_modules().end()});
  if (!layout.ok()) return layout.status();
  return layout->total_size;
}

absl::StatusOr<ProcessMemory> TrainingLearner(const MemoryInputs& in) {
  const uint64_t params = static_cast<uint64_t>(ParamLayout(in.model).total_size);
  const auto adapters = AdapterElements(in);
  if (!adapters.ok()) return adapters.status();
  // With adapters the base stays in its mapped files.
  const uint64_t trained = *adapters > 0 ? static_cast<uint64_t>(*adapters) : params;
  ProcessMemory learner;
  learner.name = "learner";
  learner.count = std::max<uint32_t>(1, in.config.learner().world_size());
  auto& pools = learner.pools;
  const bool on_host = in.config.device() != "cuda";
  if (on_host || in.config.lora().rank() > 0) {  // adapters are merged on the host
    pools.push_back({"weights", WeightsBytes(in.model, in.learner_dtype)});
  }
  if (on_host && in.mode == LearnerMode::kReinforce && in.config.algorithm().kl_beta() > 0) {
    pools.push_back({"reference weights", WeightsBytes(in.model, in.learner_dtype)});
  }
  pools.push_back({"master", 4 * trained});
  if (on_host || learner.count > 1) pools.push_back({"gradient", 4 * trained});
  pools.push_back({"Adam moments", 8 * trained});
  if (on_host) {
    pools.push_back({"activations", Decoder::TrainingBytes(in.model, in.learner_dtype, LargestMicroBatch(in),
                                                           in.config.learner().activation_recompute())});
  }
  if (in.mode == LearnerMode::kReinforce) {
    const std::string& transport = in.config.weight_sync().transport();
    if (on_host || (transport != "nccl" && transport != "ipc")) {
      // The version that is published, and the one before it until it is. Else they are on the device.
      pools.push_back({"weight snapshots", 2 * params * DTypeSize(in.rollout_dtype)});
    }
    const uint64_t samples = uint64_t{in.config.trainer().prompts_per_step()} * in.config.rollout().n() *
                             (1 + in.config.algorithm().max_staleness());
    const auto routing = RoutingRowBytes(in.config.learner().router_replay(), in.model);
    if (!routing.ok()) return routing.status();
    const uint64_t token_bytes = kSampleTokenBytes + kRoutingCopies * *routing;
    pools.push_back({"samples", samples * static_cast<uint64_t>(LongestSample(in)) * token_bytes});
  }
  return learner;
}

absl::StatusOr<ProcessMemory> RolloutServerProcess(const MemoryInputs& in) {
  const v1::RolloutConfig& rollout = in.config.rollout();
  const uint64_t weights = WeightsBytes(in.model, in.rollout_dtype);
  ProcessMemory server;
  server.name = "rollout server";
  server.count = rollout.num_servers();
  server.pools.push_back({"weights", weights});
  if (in.mode == LearnerMode::kReinforce) {
    // The set that an update fills; with samples in flight over an update, `finish` keeps an older one for them.
    const bool older = in.config.algorithm().max_staleness() > 0 && in.config.weight_sync().in_flight() == "finish";
    server.pools.push_back({"shadow weights", weights * (older ? 2 : 1)});
    const std::string& transport = in.config.weight_sync().transport();
    const bool by_tcp = in.config.device() != "cuda" && transport == "auto";
    const uint64_t bucket = BucketBytes(in.config.weight_sync(), by_tcp ? "gloo" : transport);
    server.pools.push_back({"buckets", 2 * std::min(bucket, weights)});
  }
  if (in.config.device() == "cuda") {
    server.pools.push_back({"scratch", kLoadBlockBytes + kStagingBytes});
    return server;
  }
  const int64_t response = std::max(rollout.max_tokens(), in.config.eval().max_tokens());
  const int64_t longest =
      std::min<int64_t>(in.model.max_position_embeddings,
                        std::max<int64_t>(in.config.data().max_prompt_tokens() + response, kPageTokens));
  const auto pages = PlanKvPages(in.model, in.rollout_dtype, rollout.kv_cache_mib(), rollout.max_batch_size(), longest);
  if (!pages.ok()) return pages.status();
  server.pools.push_back(
      {"KV cache", static_cast<uint64_t>(*pages) * KvStorage::BytesPerPage(in.model, in.rollout_dtype)});
  const int64_t rows = int64_t{rollout.max_batch_size()} + rollout.prefill_chunk_tokens();
  // The widest row of a layer, in the dtype and as packed FP32, its neighbours, and the logits.
  const int64_t widest = 3 * in.model.intermediate_size + in.model.qkv_rows() + 3 * in.model.hidden_size;
  const auto scratch = static_cast<uint64_t>(rows * widest * 6 + PagedLogits::kRows * in.model.vocab_size * 4 +
                                             in.model.max_position_embeddings * in.model.head_dim * 4);
  server.pools.push_back({"scratch", scratch + kLoadBlockBytes});
  return server;
}

void AddProcessPools(const MemoryInputs& in, uint64_t data_bytes, ProcessMemory* process) {
  process->pools.push_back(
      {"process", kProcessBytes + kTokenizerFactor * in.tokenizer_bytes + kDataFactor * data_bytes});
}

uint64_t FileBytes(const std::string& path) {
  std::error_code error;
  const auto size = path.empty() ? 0 : std::filesystem::file_size(path, error);
  return error ? 0 : size;
}

// What makes the largest pools smaller, largest saving first.
std::string WayOut(const MemoryPlan& plan) {
  std::vector<MemoryPool> pools;
  for (const ProcessMemory& process : plan.processes) {
    for (const MemoryPool& pool : process.pools) pools.push_back({pool.name, pool.bytes * process.count});
  }
  std::stable_sort(pools.begin(), pools.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  std::vector<std::string> ways;
  for (const MemoryPool& pool : pools) {
    std::string way;
    if (pool.name == "activations") way = "lower learner.micro_batch_tokens or set learner.activation_recompute: true";
    if (pool.name == "KV cache") way = "set rollout.kv_cache_mib or lower rollout.max_batch_size";
    if (pool.name == "shadow weights") way = "lower rollout.num_servers";
    if (pool.name == "Adam moments") way = "set lora.rank, or take a smaller model";
    if (!way.empty() && std::find(ways.begin(), ways.end(), way) == ways.end()) ways.push_back(way);
  }
  std::string text;
  for (const std::string& way : ways) absl::StrAppend(&text, text.empty() ? "" : "; ", way);
  return text.empty() ? "take a smaller model" : text;
}

}  // namespace

uint64_t MemoryPlan::bytes() const { return TotalBytes(processes); }

std::string MemoryPlan::Text() const {
  return absl::StrCat("needs ", GiBText(bytes()), " GiB: ", ProcessesText(processes));
}

std::string MemoryPlan::Json(const DevicePlan* devices) const {
  nlohmann::ordered_json root;
  root["processes"] = ProcessesJson(processes);
  root["bytes"] = bytes();
  if (devices != nullptr && !devices->devices.empty()) root["devices"] = devices->Json();
  return root.dump();
}

uint64_t WeightsBytes(const ModelConfig& model, DType dtype) {
  uint64_t bytes = 0;
  for (const ParamSpec& spec : ParamLayout(model).params) {
    const bool vector = spec.kind == ParamSpec::Kind::kVector;
    const int64_t rows = vector ? spec.rows : (spec.rows + kPanelWidth - 1) / kPanelWidth * kPanelWidth;
    bytes += BufferBytes(static_cast<uint64_t>(rows * spec.cols) * DTypeSize(dtype));
  }
  return bytes;
}

absl::StatusOr<MemoryPlan> PlanMemory(const MemoryInputs& in) {
  MemoryPlan plan;
  const bool trains = in.mode == LearnerMode::kReinforce || in.mode == LearnerMode::kPretrain;
  ProcessMemory learner;
  learner.name = "learner";
  if (trains) {
    auto training = TrainingLearner(in);
    if (!training.ok()) return training.status();
    learner = *std::move(training);
  }
  AddProcessPools(in, in.data_bytes, &learner);
  plan.processes.push_back(std::move(learner));
  if (in.mode != LearnerMode::kPretrain && in.config.rollout().addresses().empty()) {
    auto server = RolloutServerProcess(in);
    if (!server.ok()) return server.status();
    AddProcessPools(in, 0, &*server);
    plan.processes.push_back(*std::move(server));
  }
  return plan;
}

absl::StatusOr<DevicePlanInputs> DeviceInputs(const MemoryInputs& in) {
  DevicePlanInputs inputs;
  inputs.config = in.config;
  inputs.model = in.model;
  inputs.learner_dtype = in.learner_dtype;
  inputs.rollout_dtype = in.rollout_dtype;
  inputs.updates = in.mode == LearnerMode::kReinforce;
  inputs.trains = inputs.updates || in.mode == LearnerMode::kPretrain;
  inputs.serves = in.mode != LearnerMode::kPretrain && in.config.rollout().addresses().empty();
  inputs.micro_batch_tokens = LargestMicroBatch(in);
  if (inputs.trains && in.config.learner().world_size() > 1) inputs.staged_bytes = kStagedPiece;
  const auto adapters = AdapterElements(in);
  if (!adapters.ok()) return adapters.status();
  inputs.adapter_elements = *adapters;
  if (!inputs.updates) return inputs;
  const auto routing = RoutingRowBytes(in.config.learner().router_replay(), in.model);
  if (!routing.ok()) return routing.status();
  inputs.routing_bytes = *routing;
  return inputs;
}

absl::StatusOr<MemoryInputs> ReadMemoryInputs(const v1::RunConfig& config, LearnerMode mode) {
  MemoryInputs inputs;
  inputs.config = config;
  inputs.mode = mode;
  auto model = ReadHfConfig(config.model().path());
  if (!model.ok()) return model.status();
  inputs.model = *std::move(model);
  const auto learner_dtype = ParseDType(config.learner().dtype());
  if (!learner_dtype.ok()) return learner_dtype.status();
  const auto rollout_dtype = ParseDType(config.rollout().dtype());
  if (!rollout_dtype.ok()) return rollout_dtype.status();
  inputs.learner_dtype = *learner_dtype;
  inputs.rollout_dtype = *rollout_dtype;
  inputs.data_bytes = (mode == LearnerMode::kEval ? 0 : FileBytes(config.data().train())) +
                      (mode == LearnerMode::kPretrain ? 0 : FileBytes(config.data().eval()));
  inputs.tokenizer_bytes = FileBytes(config.model().path() + "/tokenizer.json");
  return inputs;
}

std::string AvailableText(const MachineMemory& machine) {
  if (machine.available_bytes == 0) return "what is available is unknown";
  return absl::StrCat(GiBText(machine.available_bytes), " GiB are available",
                      machine.limited_by_cgroup ? " (the limit of the control group)" : "");
}

absl::Status CheckMemory(const MemoryPlan& plan, const MachineMemory& machine) {
  if (machine.available_bytes == 0 || plan.bytes() <= machine.available_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("memory: ", plan.Text(), "; ", AvailableText(machine), "; ", WayOut(plan)));
}

}  // namespace lockstep
