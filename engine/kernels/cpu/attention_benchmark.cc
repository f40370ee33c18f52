// Attention of Qwen2.5-0.5B's shape (14 query heads, 2 key/value heads, head_dim 64), as fractions of what the machine
// can do, measured in the same run.
//
//   bazel run //engine/kernels:attention_bench -- [--benchmark_filter=REGEX]
//
// LOCKSTEP_THREADS sets the threads (default: all cores). `best` is the fastest pass; `fraction` is the least time by
// the limits over it: the larger of bytes of keys and values over read bandwidth (decode: every page is read once, from
// memory, since the caches of a pass exceed the last-level cache) and FLOPs over FMA peak. FLOPs are those of the two
// products (backward: five), causal halves counted once; exp, masks and conversions are not counted.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "benchmark/benchmark.h"
#include "engine/kernels/cpu/attention.h"
#include "engine/kernels/cpu/context.h"
#include "engine/kernels/cpu/machine_limits.h"

namespace lockstep::cpu {
namespace {

using Clock = std::chrono::steady_clock;

const AttentionShape kShape{14, 2, 64, 0.125f};
constexpr int64_t kWide = 14 * 64, kNarrow = 2 * 64;
// Decode walks this many bytes of caches in turn: more than a last-level cache.
constexpr int64_t kCacheBytes = int64_t{96} << 20;

MachineLimits limits;
int threads = 1;

// Random fp16 values in (-1, 1).
struct Halves {
  Halves(int64_t rows, int64_t cols, uint32_t seed)
      : buffer(static_cast<size_t>(rows * cols) * 2), view(buffer.data(), DType::kF16, rows, cols) {
    uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
    for (int64_t i = 0; i < rows * cols; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      buffer.As<uint16_t>()[i] = FloatToHalf(static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f);
    }
  }
  Buffer buffer;
  Tensor view;
};

void Report(benchmark::State& state, double best, double flops, double bytes) {
  const double least = std::max(flops / limits.fma_flops_per_second, bytes / limits.read_bytes_per_second);
  state.counters["best_us"] = best * 1e6;
  state.counters["GFLOP/s"] = flops / best * 1e-9;
  state.counters["kv_GB/s"] = bytes / best * 1e-9;
  state.counters["fraction"] = least / best;
}

template <typename Body>
double Best(benchmark::State& state, const Body& body) {
  double best = 1e30;
  for (auto _ : state) {
    const Clock::time_point begin = Clock::now();
    body();
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::min(best, seconds);
    state.SetIterationTime(seconds);
  }
  return best;
}

// One new token for each of `batch` sequences that hold `keys` tokens.
void Decode(benchmark::State& state) {
  const int64_t batch = state.range(0), keys = state.range(1);
  const int64_t pages_per_sequence = (keys + kPageTokens - 1) / kPageTokens;
  const double bytes = 4.0 * static_cast<double>(batch * keys * kNarrow);
  const int64_t copies = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(kCacheBytes) / bytes));
  const int64_t pages = copies * batch * pages_per_sequence;
  const Halves page_keys(pages, kNarrow * kPageTokens, 1), page_values(pages, kNarrow * kPageTokens, 2);
  const KvPages cache{DType::kF16, page_keys.view.data, page_values.view.data, pages};
  std::vector<int32_t> ids(static_cast<size_t>(pages));
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<std::vector<PagedSequence>> batches(static_cast<size_t>(copies));
  for (int64_t c = 0; c < copies; ++c) {
    for (int64_t s = 0; s < batch; ++s) {
      batches[static_cast<size_t>(c)].push_back(
          {s, 1, keys - 1,
           std::span<const int32_t>(ids).subspan(static_cast<size_t>((c * batch + s) * pages_per_sequence),
                                                 static_cast<size_t>(pages_per_sequence))});
    }
  }
  CpuContext context(Numerics::kMatched, threads);
  const Halves q(batch, kWide, 3), out(batch, kWide, 4);
  size_t at = 0;
  const double best =
      Best(state, [&] { AttentionPaged(context, kShape, q.view, batches[at++ % batches.size()], cache, out.view); });
  Report(state, best, 4.0 * static_cast<double>(batch * keys * kWide), bytes);
}

// `count` sequences of `length` tokens.
void Training(benchmark::State& state, Numerics numerics, bool backward) {
  const int64_t count = state.range(0), length = state.range(1), tokens = count * length;
  std::vector<int32_t> cu;
  for (int64_t s = 0; s <= count; ++s) cu.push_back(static_cast<int32_t>(s * length));
  const Halves q(tokens, kWide, 1), k(tokens, kNarrow, 2), v(tokens, kNarrow, 3), out(tokens, kWide, 4);
  const Halves d_out(tokens, kWide, 5), d_q(tokens, kWide, 6), d_k(tokens, kNarrow, 7), d_v(tokens, kNarrow, 8);
  Buffer lse_values(static_cast<size_t>(tokens * kShape.num_heads) * 4);
  const Tensor lse(lse_values.data(), DType::kF32, tokens, kShape.num_heads);
  CpuContext context(numerics, threads);
  AttentionPacked(context, kShape, q.view, k.view, v.view, cu, out.view, lse);
  const double best = Best(state, [&] {
    if (backward) {
      AttentionPackedBackward(context, kShape, d_out.view, q.view, k.view, v.view, out.view, lse, cu, d_q.view,
                              d_k.view, d_v.view);
    } else {
      AttentionPacked(context, kShape, q.view, k.view, v.view, cu, out.view, lse);
    }
  });
  const double pairs = static_cast<double>(count) * static_cast<double>(length) * static_cast<double>(length + 1) / 2;
  Report(state, best, (backward ? 10.0 : 4.0) * pairs * kWide, 4.0 * static_cast<double>(tokens * kNarrow));
}

void Register(const char* name, void (*run)(benchmark::State&), std::vector<std::vector<int64_t>> arguments) {
  auto* added = benchmark::RegisterBenchmark(name, run);
  for (const std::vector<int64_t>& each : arguments) added->Args(each);
  added->UseManualTime()->Unit(benchmark::kMicrosecond)->MinTime(0.4);
}

void RegisterAll() {
  Register("decode/batch/keys", Decode, {{1, 128}, {1, 1024}, {8, 128}, {8, 1024}, {32, 128}, {32, 1024}, {64, 300}});
  const std::vector<std::vector<int64_t>> packed = {{16, 128}, {4, 512}, {1, 2048}};
  Register(
      "packed_forward/sequences/length", [](benchmark::State& state) { Training(state, Numerics::kMatched, false); },
      packed);
  Register(
      "packed_forward_native/sequences/length",
      [](benchmark::State& state) { Training(state, Numerics::kNative, false); }, packed);
  Register(
      "packed_backward/sequences/length", [](benchmark::State& state) { Training(state, Numerics::kMatched, true); },
      packed);
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
