// From the run's config and the model's shape to bytes, per pool and process, before anything is allocated. What is
// predicted is what the code allocates: weights by Weights' layout, activations by Decoder::TrainingBytes, the KV cache
// by PlanKvPages. docs/memory.md compares it with what processes were measured to take.
//
// With `device: cuda` it is what the processes take of the host: weights that a server has received, and the learner's
// copy of its state (TrainEngine::Fetch). What they take of the devices: device_plan.h.
//
// Mapped model files are page cache and not counted: the kernel takes them back when memory is short.
#ifndef LOCKSTEP_LEARNER_MEMORY_PLAN_H_
#define LOCKSTEP_LEARNER_MEMORY_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/machine_memory.h"
#include "engine/model/model.h"
#include "learner/device_plan.h"
#include "learner/process_memory.h"
#include "learner/setup.h"
#include "proto/run_config.pb.h"

namespace lockstep {

struct MemoryPlan {
  std::vector<ProcessMemory> processes;
  uint64_t bytes() const;
  // "needs 19.2 GiB: learner 15.1 (weights 0.9, master 1.8, ...), 2 rollout servers of 2.0 (...)"
  std::string Text() const;
  // {"processes": [{"name", "count", "bytes", "pools": {...}}], "bytes"}, in bytes; "devices" where `devices` (may be
  // null) has any.
  std::string Json(const DevicePlan* devices = nullptr) const;
};

// Bytes that a set of weights takes: matrices in whole panels of 16 rows, large buffers in whole huge pages.
uint64_t WeightsBytes(const ModelConfig& model, DType dtype);

// Of the processes that `lockstep` starts on this machine: none for rollout.addresses or learner.addresses that are
// given. `data_bytes` and `tokenizer_bytes` are sizes of files.
struct MemoryInputs {
  v1::RunConfig config;
  LearnerMode mode = LearnerMode::kReinforce;
  ModelConfig model;
  DType learner_dtype = DType::kF16;
  DType rollout_dtype = DType::kF16;
  uint64_t data_bytes = 0;
  uint64_t tokenizer_bytes = 0;
};
absl::StatusOr<MemoryPlan> PlanMemory(const MemoryInputs& inputs);
// The same for device_plan.h.
absl::StatusOr<DevicePlanInputs> DeviceInputs(const MemoryInputs& inputs);

// The inputs from the config's files; only config.json is parsed.
absl::StatusOr<MemoryInputs> ReadMemoryInputs(const v1::RunConfig& config, LearnerMode mode);

// "21.3 GiB are available", with the reason when a control group limits it.
std::string AvailableText(const MachineMemory& machine);
// RESOURCE_EXHAUSTED in one line with the pools and what to change, when the plan is larger than what is available. An
// unknown amount (0) refuses nothing.
absl::Status CheckMemory(const MemoryPlan& plan, const MachineMemory& machine);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_MEMORY_PLAN_H_
