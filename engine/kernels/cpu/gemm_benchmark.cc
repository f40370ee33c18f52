// The linear layers of Qwen2.5-0.5B, forward and backward, as fractions of what the machine can do, measured in the
// same run. Weights are fp16 and there are enough copies of each that the caches do not hold them.
//
//   bazel run //engine/kernels:bench -- [--benchmark_filter=REGEX]
//
// LOCKSTEP_THREADS sets the threads (default: all cores). `best` is the fastest of the passes, `fraction` is best over
// the limit: read bandwidth for one row, FMA peak otherwise (both for 2 .. 7 rows, where the limit is the larger time).
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "benchmark/benchmark.h"
#include "engine/kernels/cpu/context.h"
#include "engine/kernels/cpu/linear.h"
#include "engine/kernels/cpu/machine_limits.h"

namespace lockstep::cpu {
namespace {

using Clock = std::chrono::steady_clock;

struct Shape {
  const char* name;
  int64_t n, k;
};
constexpr Shape kShapes[] = {
    {"qkv", 1152, 896}, {"o", 896, 896}, {"gate_up", 9728, 896}, {"down", 896, 4864}, {"lm_head", 151936, 896}};
constexpr int64_t kWeightBytes = int64_t{200} << 20;  // of all copies of one weight, at least

enum class Pass { kForward, kBackwardInput, kBackwardWeight };

MachineLimits limits;
int threads = 1;

// Random values in (-1, 1): never zeros, which draw less power than real data.
Buffer RandomHalves(int64_t count, uint32_t seed) {
  Buffer buffer(static_cast<size_t>(count) * 2);
  uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    buffer.As<uint16_t>()[i] = FloatToHalf(static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f);
  }
  return buffer;
}

const std::vector<PackedMatrix>& Weights(const Shape& shape) {
  static const Shape* held_shape = nullptr;
  static std::vector<PackedMatrix> held;
  if (held_shape == &shape) return held;
  held.clear();
  held_shape = &shape;
  const Buffer rows = RandomHalves(shape.n * shape.k, 1);
  const int64_t copies = std::max<int64_t>(1, (kWeightBytes + shape.n * shape.k * 2 - 1) / (shape.n * shape.k * 2));
  for (int64_t i = 0; i < copies; ++i) {
    held.emplace_back(DType::kF16, shape.n, shape.k);
    held.back().SetRows(0, Tensor(const_cast<void*>(rows.data()), DType::kF16, shape.n, shape.k));
  }
  return held;
}

void Report(benchmark::State& state, const Shape& shape, int64_t m, double best, Numerics numerics) {
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(shape.n) * static_cast<double>(shape.k);
  const double bytes = 2.0 * static_cast<double>(shape.n) * static_cast<double>(shape.k);
  const double least = std::max(flops / limits.fma_flops_per_second, bytes / limits.read_bytes_per_second);
  state.counters["best_us"] = best * 1e6;
  state.counters["GFLOP/s"] = flops / best * 1e-9;
  state.counters["weight_GB/s"] = bytes / best * 1e-9;
  state.counters["fraction"] = least / best;
  state.SetLabel(numerics == Numerics::kMatched ? "matched" : "native");
}

void RunPass(benchmark::State& state, const Shape& shape, Pass pass, int64_t m, Numerics numerics) {
  CpuContext context(numerics, threads);
  Buffer x_values = RandomHalves(m * shape.k, 2), y_values = RandomHalves(m * shape.n, 3);
  const Tensor x(x_values.data(), DType::kF16, m, shape.k), y(y_values.data(), DType::kF16, m, shape.n);
  Buffer gradient(pass == Pass::kBackwardWeight ? static_cast<size_t>(shape.n * shape.k) * 4 : 0);
  const Tensor d_w(gradient.data(), DType::kF32, shape.n, shape.k);
  const std::vector<PackedMatrix>* weights = pass == Pass::kBackwardWeight ? nullptr : &Weights(shape);
  double best = 1e30;
  size_t at = 0;
  for (auto _ : state) {
    const Clock::time_point begin = Clock::now();
    switch (pass) {
      case Pass::kForward:
        Linear(context, x, (*weights)[at++ % weights->size()], Tensor(), Tensor(), y);
        break;
      case Pass::kBackwardInput:
        LinearBackwardInput(context, y, (*weights)[at++ % weights->size()], x, /*accumulate=*/false);
        break;
      case Pass::kBackwardWeight:
        LinearBackwardWeight(context, y, x, d_w, Tensor());
        break;
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::min(best, seconds);
    state.SetIterationTime(seconds);
  }
  Report(state, shape, m, best, numerics);
}

void Register(const Shape& shape, const char* pass_name, Pass pass, int64_t m, Numerics numerics) {
  const std::string name = std::string(pass_name) + "/" + shape.name + "/rows:" + std::to_string(m);
  auto* added = benchmark::RegisterBenchmark(
      name.c_str(), [&shape, pass, m, numerics](benchmark::State& state) { RunPass(state, shape, pass, m, numerics); });
  added->UseManualTime()->Unit(benchmark::kMicrosecond)->MinTime(0.4);
}

void RegisterAll() {
  for (const Shape& shape : kShapes) {
    for (const int64_t m : {1, 2, 4, 8, 32, 256, 2048}) {
      // The vocabulary's product of many rows is computed in chunks (LogProb), never at once.
      if (shape.n > 100000 && m > 256) continue;
      Register(shape, "forward", Pass::kForward, m, Numerics::kMatched);
    }
    for (const int64_t m : {1, 32}) Register(shape, "forward_native", Pass::kForward, m, Numerics::kNative);
    const int64_t tokens = shape.n > 100000 ? 256 : 2048;
    Register(shape, "backward_input", Pass::kBackwardInput, tokens, Numerics::kMatched);
    Register(shape, "backward_weight", Pass::kBackwardWeight, tokens, Numerics::kMatched);
  }
}

}  // namespace

int Main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const char* asked = std::getenv("LOCKSTEP_THREADS");
  threads = std::max(1, asked != nullptr ? std::atoi(asked) : static_cast<int>(std::thread::hardware_concurrency()));
  {
    ThreadPool pool(threads);
    limits = MeasureMachineLimits(pool);
  }
  std::printf("threads %d, read bandwidth %.1f GB/s over %zu MiB, FP32 FMA peak %.1f GFLOP/s\n", threads,
              limits.read_bytes_per_second * 1e-9, kReadBytes >> 20, limits.fma_flops_per_second * 1e-9);
  RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace lockstep::cpu

int main(int argc, char** argv) { return lockstep::cpu::Main(argc, argv); }
