#include "tests/gpu/ipc_device.h"
#include "weight_sync/device_emulation.h"

namespace lockstep {

absl::StatusOr<std::shared_ptr<CommDevice>> MakeIpcDevice() { return MakeEmulatedDevice("gpu"); }

}  // namespace lockstep
