// The device of ipc_switch: the GPU, or an emulated one (ipc_device_cuda.cc, ipc_device_emulated.cc).
#ifndef LOCKSTEP_TESTS_GPU_IPC_DEVICE_H_
#define LOCKSTEP_TESTS_GPU_IPC_DEVICE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "weight_sync/comm_device.h"

namespace lockstep {

// UNAVAILABLE in one line: there is no device.
absl::StatusOr<std::shared_ptr<CommDevice>> MakeIpcDevice();

}  // namespace lockstep

#endif  // LOCKSTEP_TESTS_GPU_IPC_DEVICE_H_
