// The device of the checks of communication: the GPU, or an emulated one (check_device_cuda.cc, _emulated.cc).
#ifndef LOCKSTEP_TESTS_GPU_CHECK_DEVICE_H_
#define LOCKSTEP_TESTS_GPU_CHECK_DEVICE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "weight_sync/comm_device.h"

namespace lockstep {

inline constexpr int kNoDevice = 77;  // exit code

// UNAVAILABLE: there is no device, or no NCCL where that is wanted.
absl::StatusOr<std::shared_ptr<CommDevice>> MakeCheckDevice(bool with_nccl);

// Copies and waits; either side on the device or on the host.
absl::Status CopyNow(DeviceRuntime& runtime, void* stream, void* to, const void* from, uint64_t bytes);

// What a program of these checks ends with: 0 where status is OK, kNoDevice with one line on stdout where it is
// UNAVAILABLE, else 1 with one line on stderr.
int ExitCode(const char* what, const absl::Status& status);

}  // namespace lockstep

#endif  // LOCKSTEP_TESTS_GPU_CHECK_DEVICE_H_
