// What a build without a CUDA Toolkit says when a run asks for a GPU.
#ifndef LOCKSTEP_ENGINE_BASE_NO_CUDA_H_
#define LOCKSTEP_ENGINE_BASE_NO_CUDA_H_

#include "absl/status/status.h"

namespace lockstep {

inline absl::Status NoCudaError() {
  return absl::UnimplementedError(
      "device: cuda: this build has no CUDA; build where a CUDA Toolkit is installed, or set device: cpu");
}

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_NO_CUDA_H_
