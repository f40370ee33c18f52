#include "engine/base/no_cuda.h"
#include "learner/device_engine.h"

namespace lockstep {

absl::StatusOr<int> FindTrainDevice(int) { return NoCudaError(); }

absl::StatusOr<std::unique_ptr<TrainEngine>> MakeDeviceTrainEngine(const TrainEngineOptions&, int) {
  return NoCudaError();
}

absl::StatusOr<DevicePlan> PlanDevices(const DevicePlanInputs&) { return NoCudaError(); }

int DeviceExitCode(const absl::Status&, int otherwise) { return otherwise; }

}  // namespace lockstep
