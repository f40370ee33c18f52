// Decode steps of a model: engine/cuda's, as graphs, with draws, pipelined as the rollout server does it.
#ifndef LOCKSTEP_TESTS_GPU_BENCH_BENCH_DECODE_H_
#define LOCKSTEP_TESTS_GPU_BENCH_BENCH_DECODE_H_

#include <string>

#include "engine/kernels/cuda/gemm.h"
#include "tests/gpu/bench/bench_options.h"
#include "tests/gpu/bench/limits.h"

namespace lockstep::cuda {

// One table: each batch size, native (where native is not null) and matched, beside its limit. A row that fails says
// why; an error is one that no row can be measured after.
absl::Status BenchDecode(const BenchOptions& options, const std::string& shape, const DeviceLimits& limits,
                         DeviceGemm* native, DeviceGemm& matched, const Stream& stream, Tables& tables);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_TESTS_GPU_BENCH_BENCH_DECODE_H_
