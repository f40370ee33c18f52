#include "engine/kernels/cpu/log_prob.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/base/check.h"
#include "engine/kernels/cpu/linear.h"
#include "engine/kernels/cpu/vector_math.h"

namespace lockstep::cpu {
namespace {

// Running maximum, sum of exp(z - max) and sum of exp(z - max) z of one row.
struct RowState {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;
  float weighted = 0;

  // Takes in `count` logits; z = logit * inverse_temperature.
  void Add(const float* logits, int64_t count, float inverse_temperature) {
    const __m256 factor = _mm256_set1_ps(inverse_temperature);
    const __m256 lowest = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
    __m256 largest = lowest;
    for (int64_t i = 0; i < count; i += kLanes) {
      __m256 z = _mm256_mul_ps(LoadFloats(logits + i, count - i), factor);
      if (count - i < kLanes) z = _mm256_blendv_ps(lowest, z, _mm256_castsi256_ps(LaneMask(count - i)));
      largest = _mm256_max_ps(z, largest);
    }
    const float next = std::max(max, MaxLanes(largest));
    const __m256 center = _mm256_set1_ps(next);
    __m256 sums = _mm256_setzero_ps();
    __m256 products = _mm256_setzero_ps();
    for (int64_t i = 0; i < count; i += kLanes) {
      const __m256 z = _mm256_mul_ps(LoadFloats(logits + i, count - i), factor);
      __m256 p = Exp(_mm256_sub_ps(z, center));
      if (count - i < kLanes) p = _mm256_and_ps(p, _mm256_castsi256_ps(LaneMask(count - i)));
      sums = _mm256_add_ps(sums, p);
      products = _mm256_fmadd_ps(p, z, products);
    }
    const float alpha = ExpScalar(max - next);
    sum = sum * alpha + SumLanes(sums);
    weighted = weighted * alpha + SumLanes(products);
    max = next;
  }

  float LogSum() const { return max + LogScalar(sum); }
  float Entropy() const { return LogSum() - weighted / sum; }
};

Tensor FloatMatrix(float* data, int64_t rows, int64_t cols) { return Tensor(data, DType::kF32, rows, cols); }

}  // namespace

float LogSumExp(const float* logits, int64_t vocab_size, float temperature) {
  RowState state;
  const float inverse = 1.0f / temperature;
  for (int64_t v = 0; v < vocab_size; v += kVocabularyChunk) {
    state.Add(logits + v, std::min(kVocabularyChunk, vocab_size - v), inverse);
  }
  return state.LogSum();
}

void LogProb(CpuContext& context, const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets,
             float temperature, float* log_prob, float* entropy, float* lse) {
  LOCKSTEP_CHECK(static_cast<int64_t>(targets.size()) == x.rows, "one target a row");
  const float inverse = 1.0f / temperature;
  const int64_t chunk = context.numerics == Numerics::kMatched ? kVocabularyChunk : kVocabularyChunk / 4;
  const int64_t row_chunk = std::min(kRowChunk, x.rows);
  float* logits = context.log_prob.Get<float>(static_cast<size_t>(row_chunk * chunk));
  for (int64_t row = 0; row < x.rows; row += row_chunk) {
    const int64_t rows = std::min(row_chunk, x.rows - row);
    RowState states[kRowChunk];
    for (int64_t v = 0; v < w.n(); v += chunk) {
      const int64_t count = std::min(chunk, w.n() - v);
      const int64_t panels = (count + kPanelWidth - 1) / kPanelWidth;
      const Tensor part = FloatMatrix(logits, rows, panels * kPanelWidth);
      LinearPanels(context, x.Rows(row, rows), w, v / kPanelWidth, panels, part);
      context.pool.Run([&](int thread, int threads) {
        const auto [begin, end] = StaticSplit(rows, 1, thread, threads);
        for (int64_t r = begin; r < end; ++r) {
          const float* z = static_cast<const float*>(part.Row(r));
          states[r].Add(z, count, inverse);
          const int64_t target = targets[static_cast<size_t>(row + r)];
          LOCKSTEP_CHECK(target >= 0 && target < w.n(), "target token id outside of the vocabulary");
          if (target >= v && target < v + count) log_prob[row + r] = z[target - v] * inverse;
        }
      });
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float log_sum = states[r].LogSum();
      log_prob[row + r] -= log_sum;
      if (entropy != nullptr) entropy[row + r] = states[r].Entropy();
      if (lse != nullptr) lse[row + r] = log_sum;
    }
  }
}

void LogProbBackward(CpuContext& context, const Tensor& x, const PackedMatrix& w, std::span<const int32_t> targets,
                     float temperature, const float* coefficient, const float* lse, const Tensor& d_x,
                     const Tensor& d_w) {
  const float inverse = 1.0f / temperature;
  const int64_t row_chunk = std::min(kRowChunk, x.rows);
  const int64_t d = x.cols;
  float* logits = context.log_prob.Get<float>(static_cast<size_t>(row_chunk * kVocabularyChunk));
  float* gradient = context.log_prob_grad.Get<float>(static_cast<size_t>(row_chunk * d));
  for (int64_t row = 0; row < x.rows; row += row_chunk) {
    const int64_t rows = std::min(row_chunk, x.rows - row);
    const Tensor x_rows = x.Rows(row, rows);
    const Tensor d_x_rows = FloatMatrix(gradient, rows, d);
    std::memset(gradient, 0, static_cast<size_t>(rows * d) * sizeof(float));
    for (int64_t v = 0; v < w.n(); v += kVocabularyChunk) {
      const int64_t count = std::min(kVocabularyChunk, w.n() - v);
      const int64_t panels = (count + kPanelWidth - 1) / kPanelWidth;
      const Tensor part = FloatMatrix(logits, rows, panels * kPanelWidth);
      LinearPanels(context, x_rows, w, v / kPanelWidth, panels, part);
      // d z_v = coefficient (onehot - softmax), z = logit / temperature.
      context.pool.Run([&](int thread, int threads) {
        const auto [begin, end] = StaticSplit(rows, 1, thread, threads);
        for (int64_t r = begin; r < end; ++r) {
          float* z = static_cast<float*>(part.Row(r));
          const float scale = coefficient[row + r] * inverse;
          const __m256 factor = _mm256_set1_ps(inverse);
          const __m256 center = _mm256_set1_ps(lse[row + r]);
          const __m256 negative = _mm256_set1_ps(-scale);
          for (int64_t i = 0; i < count; i += kLanes) {
            const int64_t n = count - i;
            const __m256 p = Exp(_mm256_sub_ps(_mm256_mul_ps(LoadFloats(z + i, n), factor), center));
            StoreFloats(z + i, _mm256_mul_ps(p, negative), n);
          }
          const int64_t target = targets[static_cast<size_t>(row + r)];
          if (target >= v && target < v + count) z[target - v] += scale;
        }
      });
      const Tensor d_logits = part.Cols(0, count);
      LinearBackwardInputRows(context, d_logits, w, v, d_x_rows, true);
      if (d_w.data != nullptr) LinearBackwardWeight(context, d_logits, x_rows, d_w.Rows(v, count), Tensor());
    }
    for (int64_t r = 0; r < rows; ++r) {
      ConvertFromFloat(d_x.dtype, static_cast<const float*>(d_x_rows.Row(r)), d_x.Row(row + r), static_cast<size_t>(d));
    }
  }
}

}  // namespace lockstep::cpu
