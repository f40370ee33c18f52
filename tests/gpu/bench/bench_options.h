// What is measured, at which size.
#ifndef LOCKSTEP_TESTS_GPU_BENCH_BENCH_OPTIONS_H_
#define LOCKSTEP_TESTS_GPU_BENCH_BENCH_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "engine/tensor/dtype.h"
#include "tests/gpu/bench/timing.h"

namespace lockstep::cuda {

struct BenchOptions {
  DType dtype = DType::kF16;
  std::vector<std::string> shapes = {"qwen2.5-1.5b", "qwen2.5-0.5b"};
  std::vector<int64_t> batches = {1, 8, 64, 256};  // sequences of a decode step
  int64_t context = 1024;                          // of each of them
  int64_t decode_steps = 16;                       // that are timed as one
  int64_t train_tokens = 8192;                     // of a packed training batch
  int64_t train_length = 1024;                     // of each of its sequences
  int64_t copied_bytes = int64_t{1} << 30;
  int64_t matrix_size = 8192;
  Repeats repeats;
  bool tiny = false;  // a model and sizes that the emulated device gets through; no figure means anything

  static BenchOptions Tiny();
};

// --dtype=fp16|bf16, --shapes=A,B, --batches=1,8, --context=N, --train_tokens=N, --train_length=N, --tiny, --out=FILE.
// InvalidArgument: one line.
struct ParsedOptions {
  BenchOptions bench;
  std::string out;
};
absl::StatusOr<ParsedOptions> ParseOptions(int argc, char** argv);

// A shape of engine/model/named_shapes.h, or the one of --tiny.
absl::StatusOr<ModelConfig> ShapeOf(const BenchOptions& options, const std::string& name);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_TESTS_GPU_BENCH_BENCH_OPTIONS_H_
