#include <utility>

#include "engine/base/log.h"
#include "engine/cuda/errors/device_check.h"
#include "engine/cuda/errors/errors.h"
#include "engine/cuda/make_gemm.h"
#include "learner/cuda_device_plan.h"
#include "learner/cuda_train_engine.h"
#include "learner/device_engine.h"

namespace lockstep {

absl::StatusOr<int> FindTrainDevice(int process) {
  const int device = cuda::DeviceOfProcess(process);
  if (absl::Status status = cuda::DeviceCheck({.device = device, .purpose = {}}).status(); !status.ok()) return status;
  return device;
}

absl::StatusOr<std::unique_ptr<TrainEngine>> MakeDeviceTrainEngine(const TrainEngineOptions& options, int process) {
  const auto device = cuda::DeviceCheck({.device = cuda::DeviceOfProcess(process), .purpose = {}});
  if (!device.ok()) return device.status();
  LogInfo(device->Text());
  auto gemm = cuda::MakeGemm(options.numerics);
  if (!gemm.ok()) return gemm.status();
  return MakeCudaTrainEngine(options, *std::move(gemm));
}

absl::StatusOr<DevicePlan> PlanDevices(const DevicePlanInputs& inputs) { return PlanCudaDevices(inputs); }

int DeviceExitCode(const absl::Status& status, int otherwise) { return cuda::ExitCodeOf(status, otherwise); }

}  // namespace lockstep
