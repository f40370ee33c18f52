// The backend of `device: cuda`, where this build has it. Bazel chooses between two sources: device_backend_cuda.cc
// with a CUDA Toolkit, device_backend_none.cc without.
#ifndef LOCKSTEP_ROLLOUT_SERVER_DEVICE_BACKEND_H_
#define LOCKSTEP_ROLLOUT_SERVER_DEVICE_BACKEND_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kernels/ops.h"
#include "rollout_server/step_backend.h"

namespace lockstep {

struct DeviceBackendOptions {
  ModelConfig config;
  DType dtype = DType::kF16;
  Numerics numerics = Numerics::kMatched;
  uint64_t kv_cache_mib = 0;  // 0: by the memory of the device
  int64_t max_decode_rows = 0;
  int64_t prefill_chunk_tokens = 0;
  int64_t max_sequence_tokens = 0;  // longer sequences are refused
  int device = 0;                   // among the visible ones
};

// UNIMPLEMENTED: this build has no CUDA. Errors of DeviceCheck (engine/cuda/errors): driver, GPU.
// process: this one's number among those that a run has on this machine; options.device is taken from it.
absl::StatusOr<std::unique_ptr<StepBackend>> MakeDeviceBackend(DeviceBackendOptions options, int process);
// The exit code of a server whose backend has failed with `status`: of an error of the device, whether a new process
// can go on (engine/cuda/errors); of any other `otherwise`.
int DeviceExitCode(const absl::Status& status, int otherwise);

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_DEVICE_BACKEND_H_
