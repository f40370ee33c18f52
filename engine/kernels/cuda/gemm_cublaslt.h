// DeviceGemm by cuBLASLt: native numerics. All sums are FP32 (no TF32, and partial sums of a split reduction are FP32
// too), in the library's own order, which may depend on the number of rows.
//
// What differs from gemm.h: the residual enters the sum in FP32 before the one store, where gemm.h stores twice. The
// rest goes to the matched kernels: experts, whose counts only the device knows; column sums; a bias with FP32 output
// of 16-bit operands, and shapes for which the library offers nothing.
//
// An algorithm is chosen by the library's heuristic when a shape is first seen (shape, strides, alignment, what is
// added) and kept: later calls of the shape give the same bits. That first call allocates on the host.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_CUBLASLT_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_CUBLASLT_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/kernels/cuda/gemm.h"

namespace lockstep::cuda {

// On the current device. workspace: device memory of this instance alone, at a multiple of 256 bytes, 32 MiB do;
// null and 0: algorithms without. It is used by one stream at a time. The calls come from one thread at a time.
// NotFound: no cuBLASLt (cublaslt_library.h). Unavailable: it does not start, in one line (no device, no driver).
absl::StatusOr<std::unique_ptr<DeviceGemm>> MakeNativeGemm(void* workspace, int64_t workspace_bytes);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_CUBLASLT_H_
