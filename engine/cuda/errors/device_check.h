// What a service asks of its device before it loads anything, so that a wrong machine is one line at the start and not
// an error an hour later.
#ifndef LOCKSTEP_ENGINE_CUDA_ERRORS_DEVICE_CHECK_H_
#define LOCKSTEP_ENGINE_CUDA_ERRORS_DEVICE_CHECK_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lockstep::cuda {

struct DeviceNeeds {
  int device = 0;             // ordinal among the visible devices
  size_t bytes = 0;           // free memory
  absl::string_view purpose;  // what they are for: "weights and KV cache"
};

struct DeviceInfo {
  int device = 0;
  int count = 0;  // visible devices
  std::string name;
  int capability = 0;      // major 10 + minor
  int driver_version = 0;  // newest CUDA that the driver supports, 1000 major + 10 minor
  int runtime_version = 0;
  size_t free_bytes = 0;
  size_t total_bytes = 0;

  // "CUDA device 0 of 8: NVIDIA H100 80GB HBM3, sm_90, 78.6 of 79.2 GiB free, driver CUDA 13.0, runtime 13.0"
  std::string Text() const;
};

// Driver, number of devices, the ordinal, compute capability and free memory, in this order; the first that is wrong is
// the error (codes as DeviceStatus of errors.h has them). Sets the calling thread's device, and makes the process's
// context on it, which takes some hundred MiB itself.
absl::StatusOr<DeviceInfo> DeviceCheck(const DeviceNeeds& needs);

// The visible device of the process with this number among those that a run has on this machine; numbers wrap around.
// Where there is none 0, about which DeviceCheck says more.
int DeviceOfProcess(int process);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_ERRORS_DEVICE_CHECK_H_
