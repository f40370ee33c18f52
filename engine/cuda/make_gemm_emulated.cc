#include <utility>

#include "engine/cuda/make_gemm.h"

namespace lockstep::cuda {

absl::StatusOr<OwnedGemm> MakeGemm(Numerics numerics) {
  OwnedGemm owned;
  // The workspace, which nothing uses, is there so that a process takes the memory that the plan says.
  auto workspace = DeviceBuffer::Allocate(GemmBytes(numerics), "the workspace of matrix products");
  if (!workspace.ok()) return workspace.status();
  owned.workspace = *std::move(workspace);
  owned.gemm = MakeMatchedGemm();
  return owned;
}

}  // namespace lockstep::cuda
