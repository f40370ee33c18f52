// The engine of `device: cuda`, where this build has it. Bazel chooses between two sources: device_engine_cuda.cc with
// a CUDA Toolkit, device_engine_none.cc without.
#ifndef LOCKSTEP_LEARNER_DEVICE_ENGINE_H_
#define LOCKSTEP_LEARNER_DEVICE_ENGINE_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "learner/device_plan.h"
#include "learner/train_engine.h"

namespace lockstep {

// UNIMPLEMENTED: this build has no CUDA. Errors of DeviceCheck (engine/cuda/errors): driver, GPU.
// The device of the process with this number among those that a run has on this machine.
absl::StatusOr<int> FindTrainDevice(int process);
// Errors of FindTrainDevice and of MakeCudaTrainEngine.
absl::StatusOr<std::unique_ptr<TrainEngine>> MakeDeviceTrainEngine(const TrainEngineOptions& options, int process);
// What a run takes of the devices. UNIMPLEMENTED as above; errors of PlanCudaDevices.
absl::StatusOr<DevicePlan> PlanDevices(const DevicePlanInputs& inputs);
// The exit code of a run that an error of the device has ended, which says whether a new process can go on
// (engine/cuda/errors); of any other error `otherwise`.
int DeviceExitCode(const absl::Status& status, int otherwise);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_DEVICE_ENGINE_H_
