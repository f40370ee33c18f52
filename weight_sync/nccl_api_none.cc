// Builds without NCCL.
#include "weight_sync/nccl_api.h"

namespace lockstep {

absl::StatusOr<std::shared_ptr<NcclApi>> LoadNccl() {
  return absl::UnavailableError(
      "no NCCL: this build has none; build with a CUDA toolkit and with NCCL_HOME set to a folder with include/nccl.h");
}

}  // namespace lockstep
