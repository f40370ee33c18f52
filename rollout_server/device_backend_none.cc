#include "engine/base/no_cuda.h"
#include "rollout_server/device_backend.h"

namespace lockstep {

absl::StatusOr<std::unique_ptr<StepBackend>> MakeDeviceBackend(DeviceBackendOptions, int) { return NoCudaError(); }

int DeviceExitCode(const absl::Status&, int otherwise) { return otherwise; }

}  // namespace lockstep
