#include "engine/kernels/cpu/machine_limits.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <vector>

#include "engine/tensor/tensor.h"

namespace lockstep::cpu {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Keeps a value that the optimizer could otherwise drop.
void Keep(__m256i value) { asm volatile("" : : "x"(value)); }
void Keep(__m256 value) { asm volatile("" : : "x"(value)); }

void ReadAll(const char* data, size_t bytes) {
  __m256i sum[4] = {};
  for (size_t i = 0; i + 128 <= bytes; i += 128) {
    _mm_prefetch(data + i + 2048, _MM_HINT_T0);
    _mm_prefetch(data + i + 2112, _MM_HINT_T0);
    for (int v = 0; v < 4; ++v) {
      sum[v] = _mm256_xor_si256(sum[v], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + i) + v));
    }
  }
  for (const __m256i& part : sum) Keep(part);
}

// One timed read: some milliseconds, short enough to fall between other processes' turns.
constexpr size_t kSliceBytes = size_t{96} << 20;

constexpr int64_t kFmaSteps = 250'000;
constexpr int kChains = 12;

void FmaChains() {
  __m256 chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = _mm256_set1_ps(static_cast<float>(i) * 1e-3f);
  const __m256 factor = _mm256_set1_ps(0.999f), term = _mm256_set1_ps(1e-3f);
  for (int64_t step = 0; step < kFmaSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chains[i] = _mm256_fmadd_ps(chains[i], factor, term);
  }
  for (const __m256& chain : chains) Keep(chain);
}

}  // namespace

double MeasureReadBandwidth(ThreadPool& pool, size_t bytes, int repeats) {
  Buffer buffer(bytes);
  double best = 0;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    for (size_t at = 0; at + kSliceBytes <= bytes; at += kSliceBytes) {
      const Clock::time_point begin = Clock::now();
      pool.Run([&](int thread, int threads) {
        const auto [from, to] = StaticSplit(static_cast<int64_t>(kSliceBytes), 4096, thread, threads);
        ReadAll(buffer.As<char>() + at + from, static_cast<size_t>(to - from));
      });
      best = std::max(best, static_cast<double>(kSliceBytes) / Seconds(begin));
    }
  }
  return best;
}

double MeasureFmaPeak(ThreadPool& pool, int repeats) {
  std::vector<double> best(static_cast<size_t>(pool.threads()), 0.0);
  const double flops = 2.0 * 8 * kChains * static_cast<double>(kFmaSteps);
  for (int repeat = 0; repeat < repeats; ++repeat) {
    pool.Run([&](int thread, int) {
      const Clock::time_point begin = Clock::now();
      FmaChains();
      double& own = best[static_cast<size_t>(thread)];
      own = std::max(own, flops / Seconds(begin));
    });
  }
  return std::accumulate(best.begin(), best.end(), 0.0);
}

MachineLimits MeasureMachineLimits(ThreadPool& pool) {
  MachineLimits limits;
  limits.threads = pool.threads();
  limits.read_bytes_per_second = MeasureReadBandwidth(pool, kReadBytes, 7);
  limits.fma_flops_per_second = MeasureFmaPeak(pool, 200);
  return limits;
}

}  // namespace lockstep::cpu
