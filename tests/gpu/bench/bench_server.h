// Decode steps of the rollout server: its engine (scheduler, pages, draws to samples) over its GPU backend, without
// streams and network, beside the device's steps alone.
#ifndef LOCKSTEP_TESTS_GPU_BENCH_BENCH_SERVER_H_
#define LOCKSTEP_TESTS_GPU_BENCH_BENCH_SERVER_H_

#include <string>

#include "engine/kernels/cuda/gemm.h"
#include "tests/gpu/bench/bench_decode.h"
#include "tests/gpu/bench/bench_options.h"

namespace lockstep::cuda {

// One table: each batch size, native (where has_native) and matched; `alone` is what BenchDecode measured. A row that
// fails says why; an error is one that no row can be measured after.
absl::Status BenchServer(const BenchOptions& options, const std::string& shape, const StepSecondsTable& alone,
                         bool has_native, Tables& tables);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_TESTS_GPU_BENCH_BENCH_SERVER_H_
