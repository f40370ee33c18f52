// A training step of a model on packed tokens: forward, backward, norm and AdamW, all parameters.
#ifndef LOCKSTEP_TESTS_GPU_BENCH_BENCH_TRAIN_H_
#define LOCKSTEP_TESTS_GPU_BENCH_BENCH_TRAIN_H_

#include <string>

#include "engine/kernels/cuda/gemm.h"
#include "tests/gpu/bench/bench_options.h"
#include "tests/gpu/bench/limits.h"

namespace lockstep::cuda {

// One table; as BenchDecode.
absl::Status BenchTrain(const BenchOptions& options, const std::string& shape, const DeviceLimits& limits,
                        DeviceGemm* native, DeviceGemm& matched, const Stream& stream, Tables& tables);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_TESTS_GPU_BENCH_BENCH_TRAIN_H_
