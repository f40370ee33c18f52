#include "engine/cuda/make_gemm.h"

#include <utility>

namespace lockstep::cuda {

absl::StatusOr<OwnedGemm> MakeGemm(Numerics numerics) {
  if (numerics != Numerics::kMatched) {
    return absl::UnimplementedError(
        "numerics: native: this build has no native matrix products on a GPU; set numerics: matched");
  }
  OwnedGemm owned;
  owned.gemm = MakeMatchedGemm();
  return owned;
}

}  // namespace lockstep::cuda
