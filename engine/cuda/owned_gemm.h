// Matrix products with the device memory that they work in.
#ifndef LOCKSTEP_ENGINE_CUDA_OWNED_GEMM_H_
#define LOCKSTEP_ENGINE_CUDA_OWNED_GEMM_H_

#include <cstddef>
#include <memory>

#include "engine/cuda/device.h"
#include "engine/kernels/cuda/gemm.h"
#include "engine/kernels/ops.h"

namespace lockstep::cuda {

// Bytes of the workspace that MakeGemm allocates: native products' (gemm_cublaslt.h).
inline constexpr size_t kGemmWorkspaceBytes = size_t{32} << 20;
inline size_t GemmBytes(Numerics numerics) { return numerics == Numerics::kMatched ? 0 : kGemmWorkspaceBytes; }

struct OwnedGemm {
  DeviceBuffer workspace;  // outlives gemm
  std::unique_ptr<DeviceGemm> gemm;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_OWNED_GEMM_H_
