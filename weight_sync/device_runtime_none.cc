// Builds without a CUDA toolkit.
#include "weight_sync/device_runtime.h"

namespace lockstep {

absl::StatusOr<std::shared_ptr<DeviceRuntime>> MakeCudaRuntime(int) {
  return absl::UnavailableError("no CUDA device: this build has no CUDA; build with CUDA_HOME set to a toolkit");
}

absl::StatusOr<std::shared_ptr<DeviceRuntime>> MakeCudaRuntimeOfProcess(int process) {
  return MakeCudaRuntime(process);
}

}  // namespace lockstep
