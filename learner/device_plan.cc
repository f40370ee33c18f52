#include "learner/device_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace lockstep {
namespace {

struct Part {
  std::string process, pool;
  uint64_t bytes = 0;  // of all processes of the name
};

std::vector<Part> LargestFirst(const DeviceMemoryPlan& device) {
  std::vector<Part> parts;
  for (const ProcessMemory& process : device.processes) {
    const std::string name = absl::StrCat(process.name, process.count == 1 ? "" : "s");
    for (const MemoryPool& pool : process.pools) parts.push_back({name, pool.name, pool.bytes * process.count});
  }
  std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  return parts;
}

// The setting that makes a part smaller; empty where there is none.
std::string WayOf(const Part& part, const v1::RunConfig& config) {
  if (part.pool == "activations") {
    return config.learner().activation_recompute()
               ? "lower learner.micro_batch_tokens"
               : "lower learner.micro_batch_tokens or set learner.activation_recompute: true";
  }
  if (part.pool == "KV cache") {
    return absl::StrCat(config.rollout().kv_cache_mib() > 0 ? "lower" : "set",
                        " rollout.kv_cache_mib, or lower rollout.max_batch_size");
  }
  if (part.pool == "older weights") return "set weight_sync.in_flight: continue, which keeps no older set";
  if (part.pool == "reference weights") return "set algorithm.kl_beta: 0";
  if ((part.pool == "Adam moments" || part.pool == "master" || part.pool == "gradient") && config.lora().rank() == 0) {
    return "set lora.rank";
  }
  if (part.pool == "scratch" && part.process != "learner" && part.process != "learners") {
    return "lower rollout.prefill_chunk_tokens or rollout.max_batch_size";
  }
  if (part.pool == "staging") {
    return absl::StrCat(config.weight_sync().bucket_mib() > 0 ? "lower" : "set", " weight_sync.bucket_mib");
  }
  if (part.pool == "update image") return "set weight_sync.transport: gloo, which has it on the host";
  return "";
}

// Of the parts that matter, the largest first: small ones would not make room.
std::string WaysOut(const DeviceMemoryPlan& device, const v1::RunConfig& config) {
  std::vector<std::string> ways;
  for (const Part& part : LargestFirst(device)) {
    if (part.bytes * 20 < device.bytes()) break;
    const std::string way = WayOf(part, config);
    if (!way.empty() && std::find(ways.begin(), ways.end(), way) == ways.end()) ways.push_back(way);
  }
  uint64_t processes = 0;
  bool servers = false;
  for (const ProcessMemory& process : device.processes) {
    processes += process.count;
    servers = servers || process.name == "rollout server";
  }
  if (processes > 1) {
    ways.push_back(absl::StrCat(servers && config.rollout().num_servers() > 1 ? "lower rollout.num_servers, or " : "",
                                "give its processes GPUs of their own (CUDA_VISIBLE_DEVICES)"));
  }
  ways.push_back(device.bytes() > device.total_bytes ? "take a smaller model or a larger GPU"
                                                     : "end the GPU's other users (nvidia-smi)");
  return absl::StrJoin(ways, "; ");
}

std::string Name(const DeviceMemoryPlan& device) {
  return absl::StrCat("CUDA device ", device.device, " (", device.name, ")");
}

}  // namespace

std::string DeviceMemoryPlan::Text() const {
  return absl::StrCat(Name(*this), " needs ", GiBText(bytes()), " GiB: ", ProcessesText(processes), "; ",
                      GiBText(free_bytes), " of ", GiBText(total_bytes), " GiB are free");
}

std::string DevicePlan::Text() const {
  return absl::StrJoin(devices, "; ", [](std::string* text, const auto& device) { text->append(device.Text()); });
}

nlohmann::ordered_json DevicePlan::Json() const {
  auto list = nlohmann::ordered_json::array();
  for (const DeviceMemoryPlan& device : devices) {
    list.push_back({{"device", device.device},
                    {"name", device.name},
                    {"bytes", device.bytes()},
                    {"free_bytes", device.free_bytes},
                    {"processes", ProcessesJson(device.processes)}});
  }
  return list;
}

absl::Status CheckDevices(const DevicePlan& plan, const v1::RunConfig& config) {
  for (const DeviceMemoryPlan& device : plan.devices) {
    if (device.bytes() <= device.free_bytes) continue;
    const Part largest = LargestFirst(device).front();
    return absl::ResourceExhaustedError(absl::StrCat("memory: ", device.Text(), "; the largest part is the ",
                                                     largest.pool, " of the ", largest.process, ", ",
                                                     GiBText(largest.bytes), " GiB; ", WaysOut(device, config)));
  }
  return absl::OkStatus();
}

}  // namespace lockstep
