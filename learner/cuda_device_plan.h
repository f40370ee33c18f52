// The plan of device_plan.h, by the sizes of engine/cuda and what the runtime says of the GPUs.
#ifndef LOCKSTEP_LEARNER_CUDA_DEVICE_PLAN_H_
#define LOCKSTEP_LEARNER_CUDA_DEVICE_PLAN_H_

#include "absl/status/statusor.h"
#include "learner/device_plan.h"

namespace lockstep {

// Processes are numbered as the launcher numbers them, ranks first, and take the visible devices in turn. Errors of
// DeviceCheck (engine/cuda/errors) for each device that a process uses. INVALID_ARGUMENT: a model that the device's
// kernels do not take. RESOURCE_EXHAUSTED: a KV cache that cannot hold one sequence.
absl::StatusOr<DevicePlan> PlanCudaDevices(const DevicePlanInputs& inputs);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_CUDA_DEVICE_PLAN_H_
