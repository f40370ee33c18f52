#include "engine/kernels/optimizer.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace lockstep {
namespace {

constexpr int64_t kChunk = kGradNormChunk;

double ChunkSquares(const float* grad, int64_t n) {
  __m256d sum = _mm256_setzero_pd();
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const __m256d g = _mm256_cvtps_pd(_mm_loadu_ps(grad + i));
    sum = _mm256_fmadd_pd(g, g, sum);
  }
  double lanes[4];
  _mm256_storeu_pd(lanes, sum);
  for (; i < n; ++i) lanes[i % 4] += static_cast<double>(grad[i]) * static_cast<double>(grad[i]);
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

}  // namespace

void AdamWStep(const AdamWParams& params, float* param, float* m, float* v, const float* grad, int64_t n,
               ThreadPool& pool) {
  const auto [step_size, inverse_sqrt2, keep] = FactorsOf(params);
  pool.Run([&](int thread, int threads) {
    const auto [begin, end] = StaticSplit(n, kChunk, thread, threads);
    for (int64_t i = begin; i < end; ++i) {
      const float g = grad[i] * params.grad_multiplier;
      const float m_new = params.beta1 * m[i] + (1.0f - params.beta1) * g;
      const float v_new = params.beta2 * v[i] + (1.0f - params.beta2) * g * g;
      m[i] = m_new;
      v[i] = v_new;
      param[i] = param[i] * keep - step_size * m_new / (std::sqrt(v_new) * inverse_sqrt2 + params.eps);
    }
  });
}

double GradNormSquared(const float* grad, int64_t n, ThreadPool& pool) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<double> sums(static_cast<size_t>(chunks), 0.0);
  pool.Run([&](int thread, int threads) {
    const auto [begin, end] = StaticSplit(chunks, 1, thread, threads);
    for (int64_t c = begin; c < end; ++c) {
      sums[static_cast<size_t>(c)] = ChunkSquares(grad + c * kChunk, std::min(kChunk, n - c * kChunk));
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace lockstep
