#include "tests/gpu/check_device.h"

namespace lockstep {

absl::StatusOr<std::shared_ptr<CommDevice>> MakeCheckDevice(bool with_nccl) {
  const auto runtime = MakeCudaRuntime(0);
  if (!runtime.ok()) return runtime.status();
  std::shared_ptr<NcclApi> nccl;
  if (with_nccl) {
    const auto loaded = LoadNccl();
    if (!loaded.ok()) return loaded.status();
    nccl = *loaded;
  }
  return std::make_shared<CommDevice>(*runtime, nccl);
}

}  // namespace lockstep
