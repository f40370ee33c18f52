#include "tests/gpu/bench/native_gemm.h"

namespace lockstep::cuda {

absl::StatusOr<std::unique_ptr<DeviceGemm>> MakeBenchNativeGemm() {
  return absl::NotFoundError("this program was built without cuBLASLt");
}

}  // namespace lockstep::cuda
