#include "engine/cuda/make_gemm.h"

#include <utility>

#include "engine/kernels/cuda/gemm_cublaslt.h"

namespace lockstep::cuda {

absl::StatusOr<OwnedGemm> MakeGemm(Numerics numerics) {
  OwnedGemm owned;
  if (numerics == Numerics::kMatched) {
    owned.gemm = MakeMatchedGemm();
    return owned;
  }
  auto workspace = DeviceBuffer::Allocate(kGemmWorkspaceBytes, "the workspace of matrix products");
  if (!workspace.ok()) return workspace.status();
  owned.workspace = *std::move(workspace);
  auto gemm = MakeNativeGemm(owned.workspace.data(), static_cast<int64_t>(kGemmWorkspaceBytes));
  if (!gemm.ok()) return gemm.status();
  owned.gemm = *std::move(gemm);
  return owned;
}

}  // namespace lockstep::cuda
