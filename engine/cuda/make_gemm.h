// The matrix products of a numerics setting on a GPU.
#ifndef LOCKSTEP_ENGINE_CUDA_MAKE_GEMM_H_
#define LOCKSTEP_ENGINE_CUDA_MAKE_GEMM_H_

#include "absl/status/statusor.h"
#include "engine/cuda/owned_gemm.h"
#include "engine/kernels/ops.h"

namespace lockstep::cuda {

// Matched: the project's own kernels. Native: cuBLASLt (gemm_cublaslt.h; NOT_FOUND where it does not load), with a
// workspace of its own.
absl::StatusOr<OwnedGemm> MakeGemm(Numerics numerics);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_MAKE_GEMM_H_
