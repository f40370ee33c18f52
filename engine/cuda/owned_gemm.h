// Matrix products with the device memory that they work in.
#ifndef LOCKSTEP_ENGINE_CUDA_OWNED_GEMM_H_
#define LOCKSTEP_ENGINE_CUDA_OWNED_GEMM_H_

#include <memory>

#include "engine/cuda/device.h"
#include "engine/kernels/cuda/gemm.h"

namespace lockstep::cuda {

struct OwnedGemm {
  DeviceBuffer workspace;  // outlives gemm
  std::unique_ptr<DeviceGemm> gemm;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_OWNED_GEMM_H_
