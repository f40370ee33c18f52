// With `device: cuda`, what a run's processes on this machine take of its GPUs, before any is started: which process
// uses which GPU, bytes per pool and process, and whether the sum fits in what the GPU has free. The bytes are those
// that engine/cuda allocates (cuda_device_plan.h); what the driver and NCCL take themselves is an allowance
// (kContextBytes), or not counted.
#ifndef LOCKSTEP_LEARNER_DEVICE_PLAN_H_
#define LOCKSTEP_LEARNER_DEVICE_PLAN_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/model.h"
#include "learner/device_placement.h"
#include "learner/process_memory.h"
#include "proto/run_config.pb.h"

namespace lockstep {

// What a process takes of a GPU before it allocates anything: its context and the kernels' code. Some hundred MiB,
// which differ between drivers and GPUs; an allowance, not a measurement.
inline constexpr uint64_t kContextBytes = uint64_t{512} << 20;

struct DevicePlanInputs {
  v1::RunConfig config;
  ModelConfig model;
  DType learner_dtype = DType::kF16;
  DType rollout_dtype = DType::kF16;
  bool trains = false;   // ranks use devices; else the learner's one process only takes a number
  bool updates = false;  // rollout servers get new weights
  bool serves = false;   // rollout servers are started on this machine
  int64_t micro_batch_tokens = 0;
  int64_t adapter_elements = 0;  // of lora.rank; 0: all parameters are trained
  size_t routing_bytes = 0;      // a token's, where rollout servers send routing along
  uint64_t staged_bytes = 0;     // of the ranks' collectives
};

struct DeviceMemoryPlan {
  int device = 0;  // among the visible ones
  std::string name;
  uint64_t free_bytes = 0;
  uint64_t total_bytes = 0;
  std::vector<ProcessMemory> processes;

  uint64_t bytes() const { return TotalBytes(processes); }
  // "CUDA device 0 (NVIDIA H100 80GB HBM3) needs 19.2 GiB: learner 15.1 (...), 2 rollout servers of 2.0 (...); 78.6 of
  // 79.2 GiB are free"
  std::string Text() const;
};

struct DevicePlan {
  std::vector<DeviceMemoryPlan> devices;  // in ascending order; those that a process uses
  DevicePlacement placement;              // ranks_use_nccl is the caller's to say

  std::string Text() const;  // of all of them, "; " between
  // [{"device", "name", "bytes", "free_bytes", "processes": [...]}]
  nlohmann::ordered_json Json() const;
};

// RESOURCE_EXHAUSTED in one line about the first GPU that is too small: the plan, its largest part, and what makes it
// smaller.
absl::Status CheckDevices(const DevicePlan& plan, const v1::RunConfig& config);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_DEVICE_PLAN_H_
