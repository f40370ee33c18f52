#include "engine/kernels/cuda/cublaslt_library.h"

#include <dlfcn.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace lockstep::cuda {
namespace {

absl::StatusOr<CublasLtLibrary> Load() {
  const std::string name = absl::StrCat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    return absl::NotFoundError(absl::StrCat("native matrix products need ", name, ": ", why == nullptr ? "" : why,
                                            "; put the CUDA toolkit's lib64 on LD_LIBRARY_PATH, or use matched "
                                            "numerics, which need no library"));
  }
  CublasLtLibrary library;
  std::string missing;
  const auto find = [&](auto& function, const char* symbol) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle, symbol));
    if (function == nullptr && missing.empty()) missing = symbol;
  };
  find(library.GetVersion, "cublasLtGetVersion");
  find(library.Create, "cublasLtCreate");
  find(library.Destroy, "cublasLtDestroy");
  find(library.GetStatusName, "cublasLtGetStatusName");
  find(library.Matmul, "cublasLtMatmul");
  find(library.MatmulDescCreate, "cublasLtMatmulDescCreate");
  find(library.MatmulDescDestroy, "cublasLtMatmulDescDestroy");
  find(library.MatmulDescSetAttribute, "cublasLtMatmulDescSetAttribute");
  find(library.MatrixLayoutCreate, "cublasLtMatrixLayoutCreate");
  find(library.MatrixLayoutDestroy, "cublasLtMatrixLayoutDestroy");
  find(library.MatmulPreferenceCreate, "cublasLtMatmulPreferenceCreate");
  find(library.MatmulPreferenceDestroy, "cublasLtMatmulPreferenceDestroy");
  find(library.MatmulPreferenceSetAttribute, "cublasLtMatmulPreferenceSetAttribute");
  find(library.MatmulAlgoGetHeuristic, "cublasLtMatmulAlgoGetHeuristic");
  if (!missing.empty()) {
    return absl::NotFoundError(absl::StrCat(name, " has no ", missing, ": install the library of CUDA ",
                                            CUBLAS_VER_MAJOR, ".", CUBLAS_VER_MINOR, " or newer"));
  }
  return library;
}

}  // namespace

absl::StatusOr<const CublasLtLibrary*> LoadCublasLt() {
  static const absl::StatusOr<CublasLtLibrary> library = Load();
  if (!library.ok()) return library.status();
  return &*library;
}

}  // namespace lockstep::cuda
