// What the CUDA runtime says, as one clear line: what was attempted, on which device, what is wrong, what to do; and
// what has to happen before the device computes again.
#ifndef LOCKSTEP_ENGINE_CUDA_ERRORS_ERRORS_H_
#define LOCKSTEP_ENGINE_CUDA_ERRORS_ERRORS_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace lockstep::cuda {

// The smallest compute capability (major 10 + minor) that the kernels are compiled for (third_party/nvcc.flags).
inline constexpr int kCapabilityMin = 80;

// The classes of NVIDIA's Xid catalogue, as far as an error of the runtime tells them apart. The kernel log has the Xid
// itself (`dmesg | grep NVRM`).
enum class Recovery : uint8_t {
  kNone = 0,            // the call failed; process and device are as they were
  kRestartProcess = 1,  // sticky: every later call of this process fails too, a new process works (Xid 13, 31, 43, 94)
  kResetDevice = 2,     // drain the device, reset it, or its machine (Xid 48, 74, 79: fallen off the bus, 95, 119)
};
Recovery RecoveryOf(cudaError_t error);
// Of a status that DeviceStatus made; kNone of any other. A copy keeps it, a new status with its message does not.
Recovery RecoveryOf(const absl::Status& status);

// Exit codes of a process that gives up, for whoever starts processes (sysexits.h: EX_TEMPFAIL, EX_UNAVAILABLE).
inline constexpr int kExitRestartProcess = 75;
inline constexpr int kExitResetDevice = 69;
// Of a status as above; `otherwise` where its recovery is kNone.
int ExitCodeOf(const absl::Status& status, int otherwise);

// Asks the runtime for the device that the calling thread has set.
inline constexpr int kCurrentDevice = -1;

struct Attempt {
  absl::string_view what;  // "allocating the KV cache"
  int device = kCurrentDevice;
  size_t bytes = 0;  // that were asked for, where the attempt was an allocation
};

// OK for cudaSuccess. Else:
//   FAILED_PRECONDITION: no driver, a driver that is too old (the versions are named), no device, a device that cannot
//     run the kernels, a machine that is not set up (fabric manager, driver parts of two versions, exclusive devices)
//   INVALID_ARGUMENT: no such device
//   RESOURCE_EXHAUSTED: out of memory: bytes asked for, free and total
//   INTERNAL: everything else; RecoveryOf() tells a lost context and a lost device from a call that was wrong
// The runtime forgets the error, unless it is sticky: a later check does not blame another call for it.
absl::Status DeviceStatus(cudaError_t error, const Attempt& attempt);

// "13.0" of 13000, as the runtime counts versions; 0 is "none".
std::string VersionText(int version);
// "1.5 GiB", "12 MiB" (rounded up).
std::string SizeText(size_t bytes);
// ", CUDA_VISIBLE_DEVICES is '1,2'" where it is set: the runtime sees and counts those alone. Else "".
std::string VisibleDevicesText();

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_ERRORS_ERRORS_H_
