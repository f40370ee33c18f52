// The matrix products that "native" stands for: cuBLASLt's, and on the emulated device, which has none, the matched
// ones again.
#ifndef LOCKSTEP_TESTS_GPU_BENCH_NATIVE_GEMM_H_
#define LOCKSTEP_TESTS_GPU_BENCH_NATIVE_GEMM_H_

#include <memory>

#include "absl/status/statusor.h"
#include "engine/kernels/cuda/gemm.h"

namespace lockstep::cuda {

// Its workspace is kept until the program ends. An error says what is missing.
absl::StatusOr<std::unique_ptr<DeviceGemm>> MakeBenchNativeGemm();

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_TESTS_GPU_BENCH_NATIVE_GEMM_H_
