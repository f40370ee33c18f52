#include <utility>

#include "engine/base/log.h"
#include "engine/cuda/device_weights.h"
#include "engine/cuda/errors/device_check.h"
#include "engine/cuda/errors/errors.h"
#include "engine/cuda/make_gemm.h"
#include "rollout_server/cuda_backend.h"
#include "rollout_server/device_backend.h"

namespace lockstep {

absl::StatusOr<std::unique_ptr<StepBackend>> MakeDeviceBackend(DeviceBackendOptions options, int process) {
  options.device = cuda::DeviceOfProcess(process);
  const auto device = cuda::DeviceCheck({.device = options.device,
                                         .bytes = cuda::DeviceWeights::Bytes(options.config, options.dtype),
                                         .purpose = "the weights of a rollout server"});
  if (!device.ok()) return device.status();
  LogInfo(device->Text());
  auto gemm = cuda::MakeGemm(options.numerics);
  if (!gemm.ok()) return gemm.status();
  return MakeCudaStepBackend(options, *std::move(gemm));
}

int DeviceExitCode(const absl::Status& status, int otherwise) { return cuda::ExitCodeOf(status, otherwise); }

}  // namespace lockstep
