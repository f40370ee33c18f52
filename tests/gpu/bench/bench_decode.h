// Decode steps of a model: engine/cuda's, as graphs, with draws, pipelined: each is read while the next one runs.
#ifndef LOCKSTEP_TESTS_GPU_BENCH_BENCH_DECODE_H_
#define LOCKSTEP_TESTS_GPU_BENCH_BENCH_DECODE_H_

#include <map>
#include <string>
#include <utility>

#include "engine/kernels/cuda/gemm.h"
#include "tests/gpu/bench/bench_options.h"
#include "tests/gpu/bench/limits.h"

namespace lockstep::cuda {

// Seconds of a step by (native, batch).
using StepSecondsTable = std::map<std::pair<bool, int64_t>, double>;

// One table: each batch size, native (where native is not null) and matched, beside its limit. A row that fails says
// why; an error is one that no row can be measured after.
absl::Status BenchDecode(const BenchOptions& options, const std::string& shape, const DeviceLimits& limits,
                         DeviceGemm* native, DeviceGemm& matched, const Stream& stream, Tables& tables,
                         StepSecondsTable* measured);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_TESTS_GPU_BENCH_BENCH_DECODE_H_
