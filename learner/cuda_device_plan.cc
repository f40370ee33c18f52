#include "learner/cuda_device_plan.h"

#include <algorithm>
#include <bit>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/digest.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/device_optimizer.h"
#include "engine/cuda/device_weights.h"
#include "engine/cuda/errors/device_check.h"
#include "engine/cuda/owned_gemm.h"
#include "engine/cuda/serving.h"
#include "engine/cuda/set_writer.h"
#include "weight_sync/bucket_plan.h"
#include "weight_sync/comm_device.h"

namespace lockstep {
namespace {

constexpr char kLearner[] = "learner", kServer[] = "rollout server";

Numerics NumericsOf(const DevicePlanInputs& in) {
  return in.config.numerics() == "matched" ? Numerics::kMatched : Numerics::kNative;
}

// As weight_sync/comm_device.h rounds.
uint64_t StagingBytes(uint64_t bytes) { return std::bit_ceil(std::max(bytes, kSmallestStaging)); }

// "auto" may choose either.
bool StaysOnDevices(const DevicePlanInputs& in) {
  const std::string& transport = in.config.weight_sync().transport();
  return in.updates && (transport == "nccl" || transport == "ipc" || transport == "auto");
}

absl::StatusOr<BucketPlan> UpdatePlan(const DevicePlanInputs& in) {
  const v1::WeightSyncConfig& sync = in.config.weight_sync();
  return MakeBucketPlan(ParamLayout(in.model), in.rollout_dtype, BucketBytes(sync, sync.transport()));
}

// The image of an update in the sender's memory, and its digests (weight_sync/device_snapshot.h).
uint64_t ImageBytes(const BucketPlan& plan) {
  uint64_t digests = 0;
  for (const Bucket& bucket : plan.buckets) digests += DigestBlocks(bucket.bytes) * sizeof(uint64_t);
  return plan.total_bytes + StagingBytes(digests);
}

// What a server takes for an update beside the set that it fills.
uint64_t ReceiverBytes(const DevicePlanInputs& in, const BucketPlan& plan) {
  std::vector<cuda::ImagePiece> pieces;
  for (const Bucket& cut : plan.buckets) pieces.push_back({cut.begin, cut.bytes});
  return cuda::SetWriter::Bytes(in.model, in.rollout_dtype, pieces);
}

// sends: the updates, as rank 0 does.
absl::StatusOr<ProcessMemory> Rank(const DevicePlanInputs& in, bool sends) {
  const uint64_t weights = cuda::DeviceWeights::Bytes(in.model, in.learner_dtype);
  const bool lora = in.adapter_elements > 0;
  const auto size = lora ? in.adapter_elements : cuda::ArenaLayout(in.model).size;
  const auto floats = static_cast<uint64_t>(size) * sizeof(float);
  const uint64_t optimizer = cuda::DeviceOptimizer::Bytes(size);
  // As cuda_train_engine.cc makes its decoder.
  const cuda::PagedLimits no_paging = {.rows = 1, .decode_rows = 1, .max_position = 0};
  const uint64_t decoder = cuda::DeviceDecoder::PagedBytes(in.model, in.learner_dtype, NumericsOf(in), no_paging);
  ProcessMemory rank;
  rank.name = kLearner;
  rank.pools.push_back({"weights", weights});
  if (in.updates && in.config.algorithm().kl_beta() > 0) rank.pools.push_back({"reference weights", weights});
  rank.pools.push_back({"master", floats});
  rank.pools.push_back({"gradient", floats});
  rank.pools.push_back({"Adam moments", 2 * floats});
  rank.pools.push_back({"activations", cuda::DeviceDecoder::TrainingBytes(
                                           in.model, in.learner_dtype, in.micro_batch_tokens,
                                           in.config.learner().activation_recompute(), in.config.lora().rank())});
  rank.pools.push_back({"scratch", optimizer - 4 * floats + decoder + cuda::GemmBytes(NumericsOf(in))});
  if (in.staged_bytes > 0) rank.pools.push_back({"staging", StagingBytes(in.staged_bytes)});
  if (sends && StaysOnDevices(in)) {
    const auto plan = UpdatePlan(in);
    if (!plan.ok()) return plan.status();
    rank.pools.push_back({"update image", ImageBytes(*plan)});
  }
  rank.pools.push_back({"context", kContextBytes});
  return rank;
}

cuda::ServingShape ServingShapeOf(const DevicePlanInputs& in) {
  const v1::RolloutConfig& rollout = in.config.rollout();
  // As rollout_server/main.cc does.
  const int64_t prompt = in.config.data().max_prompt_tokens();
  const int64_t response = std::max(rollout.max_tokens(), in.config.eval().max_tokens());
  return {.config = in.model,
          .dtype = in.rollout_dtype,
          .numerics = NumericsOf(in),
          .max_decode_rows = rollout.max_batch_size(),
          .prefill_chunk_tokens = rollout.prefill_chunk_tokens(),
          .max_sequence_tokens =
              std::min<int64_t>(in.model.max_position_embeddings, std::max<int64_t>(prompt + response, kPageTokens))};
}

// free_bytes: of its device, once all that were started before it have what they need.
absl::StatusOr<ProcessMemory> Server(const DevicePlanInputs& in, uint64_t free_bytes) {
  const cuda::ServingShape shape = ServingShapeOf(in);
  const uint64_t weights = cuda::DeviceWeights::Bytes(in.model, in.rollout_dtype);
  const uint64_t made = cuda::ServingScratchBytes(shape) + cuda::GemmBytes(shape.numerics);
  const uint64_t before_cache = made + kContextBytes;
  const auto pages =
      cuda::ServingPages(shape, in.config.rollout().kv_cache_mib(), free_bytes - std::min(free_bytes, before_cache));
  if (!pages.ok()) return pages.status();
  ProcessMemory server;
  server.name = kServer;
  server.pools.push_back({"weights", weights});
  if (in.updates) {
    server.pools.push_back({"shadow weights", weights});
    // Samples in flight over an update keep their set (rollout_server/cuda_backend.h).
    const bool older = in.config.algorithm().max_staleness() > 0 && in.config.weight_sync().in_flight() == "finish";
    if (older) server.pools.push_back({"older weights", 2 * weights});
  }
  if (StaysOnDevices(in)) {
    const auto plan = UpdatePlan(in);
    if (!plan.ok()) return plan.status();
    server.pools.push_back({"staging", ReceiverBytes(in, *plan)});
  }
  server.pools.push_back(
      {"KV cache", static_cast<uint64_t>(*pages) * cuda::DeviceKv::BytesPerPage(in.model, in.rollout_dtype)});
  server.pools.push_back({"scratch", made + cuda::ServingStepBytes(shape, in.routing_bytes > 0)});
  server.pools.push_back({"context", kContextBytes});
  return server;
}

// The devices as processes come to them.
class Devices {
 public:
  // Errors of DeviceCheck.
  absl::StatusOr<DeviceMemoryPlan*> At(int device) {
    const auto found = devices_.find(device);
    if (found != devices_.end()) return &found->second;
    const auto info = cuda::DeviceCheck({.device = device, .purpose = {}});
    if (!info.ok()) return info.status();
    DeviceMemoryPlan plan;
    plan.device = device;
    plan.name = info->name;
    plan.free_bytes = info->free_bytes;
    plan.total_bytes = info->total_bytes;
    return &devices_.emplace(device, std::move(plan)).first->second;
  }
  absl::Status Add(int device, ProcessMemory process) {
    const auto plan = At(device);
    if (!plan.ok()) return plan.status();
    for (ProcessMemory& other : (*plan)->processes) {
      if (!Equal(other, process)) continue;
      ++other.count;
      return absl::OkStatus();
    }
    (*plan)->processes.push_back(std::move(process));
    return absl::OkStatus();
  }
  DevicePlan Take() {
    DevicePlan plan;
    for (auto& [device, memory] : devices_) {
      std::stable_sort(memory.processes.begin(), memory.processes.end(),  // started last, read first
                       [](const auto& a, const auto& b) { return a.name == kLearner && b.name != kLearner; });
      plan.devices.push_back(std::move(memory));
    }
    return plan;
  }

 private:
  static bool Equal(const ProcessMemory& a, const ProcessMemory& b) {
    return a.name == b.name &&
           std::equal(a.pools.begin(), a.pools.end(), b.pools.begin(), b.pools.end(),
                      [](const MemoryPool& x, const MemoryPool& y) { return x.name == y.name && x.bytes == y.bytes; });
  }
  std::map<int, DeviceMemoryPlan> devices_;
};

absl::Status AddServers(const DevicePlanInputs& in, int first_number, Devices* devices) {
  for (uint32_t i = 0; i < in.config.rollout().num_servers(); ++i) {
    const int device = cuda::DeviceOfProcess(first_number + static_cast<int>(i));
    const auto plan = devices->At(device);
    if (!plan.ok()) return plan.status();
    const uint64_t taken = (*plan)->bytes();
    auto server = Server(in, (*plan)->free_bytes - std::min((*plan)->free_bytes, taken));
    if (!server.ok()) {
      return absl::Status(
          server.status().code(),
          absl::StrCat("memory: CUDA device ", device, " (", (*plan)->name, "), ", GiBText((*plan)->free_bytes),
                       " GiB free, ", GiBText(taken), " planned for other processes: ", server.status().message()));
    }
    if (absl::Status status = devices->Add(device, *std::move(server)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DevicePlan> PlanCudaDevices(const DevicePlanInputs& in) {
  if (in.trains || in.serves) {
    if (absl::Status status = cuda::DeviceDecoder::CheckShape(in.model); !status.ok()) return status;
  }
  const int ranks = in.trains ? static_cast<int>(std::max<uint32_t>(1, in.config.learner().world_size())) : 1;
  Devices devices;
  DevicePlacement placement = {.updates = in.updates};
  if (in.serves) {  // they are started first
    if (absl::Status status = AddServers(in, ranks, &devices); !status.ok()) return status;
    for (uint32_t i = 0; i < in.config.rollout().num_servers(); ++i) {
      placement.servers.push_back(cuda::DeviceOfProcess(ranks + static_cast<int>(i)));
    }
  }
  for (int rank = 0; in.trains && rank < ranks; ++rank) {
    const int device = cuda::DeviceOfProcess(rank);
    placement.ranks.push_back(device);
    auto process = Rank(in, /*sends=*/rank == 0);
    if (!process.ok()) return process.status();
    absl::Status status = devices.Add(device, *std::move(process));
    if (!status.ok()) return status;
  }
  DevicePlan plan = devices.Take();
  plan.placement = std::move(placement);
  return plan;
}

}  // namespace lockstep
