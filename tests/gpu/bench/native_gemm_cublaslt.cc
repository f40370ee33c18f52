#include "engine/cuda/device.h"
#include "engine/kernels/cuda/gemm_cublaslt.h"
#include "tests/gpu/bench/native_gemm.h"

namespace lockstep::cuda {

absl::StatusOr<std::unique_ptr<DeviceGemm>> MakeBenchNativeGemm() {
  constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
  auto workspace = DeviceBuffer::Allocate(static_cast<size_t>(kWorkspaceBytes), "cuBLASLt's workspace");
  if (!workspace.ok()) return workspace.status();
  static DeviceBuffer* const kept = new DeviceBuffer(*std::move(workspace));
  return MakeNativeGemm(kept->data(), kWorkspaceBytes);
}

}  // namespace lockstep::cuda
