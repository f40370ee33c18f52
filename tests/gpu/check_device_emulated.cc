#include "tests/gpu/check_device.h"
#include "weight_sync/device_emulation.h"

namespace lockstep {

absl::StatusOr<std::shared_ptr<CommDevice>> MakeCheckDevice(bool) { return MakeEmulatedDevice("gpu"); }

}  // namespace lockstep
