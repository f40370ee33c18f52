// cuBLASLt, loaded when it is first wanted: the library has half a gigabyte, and a process that does not use native
// matrix products (or a machine that has none) is not to need it. Looked for where the loader looks (LD_LIBRARY_PATH,
// the system's folders) and in the toolkit that the program was built with (its run path).
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_CUBLASLT_LIBRARY_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_CUBLASLT_LIBRARY_H_

#include <cublasLt.h>

#include "absl/status/statusor.h"

namespace lockstep::cuda {

// The functions that gemm_cublaslt.cc calls, by their own names and types.
struct CublasLtLibrary {
  decltype(&cublasLtGetVersion) GetVersion = nullptr;
  decltype(&cublasLtCreate) Create = nullptr;
  decltype(&cublasLtDestroy) Destroy = nullptr;
  decltype(&cublasLtGetStatusName) GetStatusName = nullptr;
  decltype(&cublasLtMatmul) Matmul = nullptr;
  decltype(&cublasLtMatmulDescCreate) MatmulDescCreate = nullptr;
  decltype(&cublasLtMatmulDescDestroy) MatmulDescDestroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) MatrixLayoutCreate = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic = nullptr;
};

// Loaded once, never unloaded; any thread. NotFound: there is no library of the major version that this was built with,
// or it lacks a function; the message says where to get it.
absl::StatusOr<const CublasLtLibrary*> LoadCublasLt();

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_CUBLASLT_LIBRARY_H_
