#include "tests/gpu/ipc_device.h"

namespace lockstep {

absl::StatusOr<std::shared_ptr<CommDevice>> MakeIpcDevice() {
  auto runtime = MakeCudaRuntime(0);
  if (!runtime.ok()) return runtime.status();
  return std::make_shared<CommDevice>(*std::move(runtime), nullptr);
}

}  // namespace lockstep
