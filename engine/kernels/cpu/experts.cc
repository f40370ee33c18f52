#include "engine/kernels/cpu/experts.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/base/check.h"
#include "engine/kernels/cpu/for_rows.h"
#include "engine/kernels/cpu/vector_math.h"

namespace lockstep::cpu {
namespace {

// The top_k largest of z [n], ascending by index, into chosen. One pass that keeps the best so far, sorted by value: a
// later equal value goes behind an earlier one, and NaN behind everything.
void ChooseLargest(const float* z, int64_t n, int64_t top_k, int32_t* chosen) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (count == top_k && !(z[i] > z[chosen[count - 1]])) {
      const bool last_is_nan = z[chosen[count - 1]] != z[chosen[count - 1]];
      if (!last_is_nan || z[i] != z[i]) continue;
    }
    int64_t at = count < top_k ? count++ : count - 1;
    while (at > 0 && (z[i] > z[chosen[at - 1]] || (z[chosen[at - 1]] != z[chosen[at - 1]] && z[i] == z[i]))) {
      chosen[at] = chosen[at - 1];
      --at;
    }
    chosen[at] = static_cast<int32_t>(i);
  }
  std::sort(chosen, chosen + top_k);
}

// The largest of z [n]; NaN when one is NaN, so that it reaches the weights.
float Largest(const float* z, int64_t n) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    if (!(z[i] <= largest)) largest = z[i];
    if (largest != largest) return largest;
  }
  return largest;
}

// What exponents are taken relative to: the largest of what the sum goes over, so that not all of it can vanish. NaN
// when any of z is.
float Shift(const float* z, int64_t n, std::span<const int32_t> chosen, bool over_chosen) {
  const float largest = Largest(z, n);
  if (!over_chosen || largest != largest) return largest;
  float chosen_largest = z[chosen.front()];
  for (const int32_t expert : chosen) chosen_largest = std::max(chosen_largest, z[expert]);
  return chosen_largest;
}

// sum of exp(z - largest) over all n, or over the chosen ones.
float SumExp(const float* z, int64_t n, float largest, std::span<const int32_t> chosen, bool over_chosen) {
  if (over_chosen) {
    float sum = 0;
    for (const int32_t expert : chosen) sum += ExpScalar(z[expert] - largest);
    return sum;
  }
  const __m256 shift = _mm256_set1_ps(largest);
  __m256 sums = _mm256_setzero_ps();
  for (int64_t i = 0; i < n; i += kLanes) {
    const __m256 mask = _mm256_castsi256_ps(LaneMask(std::min(kLanes, n - i)));
    const __m256 e = Exp(_mm256_sub_ps(LoadFloats(z + i, n - i), shift));
    sums = _mm256_add_ps(sums, _mm256_and_ps(mask, e));
  }
  return SumLanes(sums);
}

// softmax over the chosen ones (normalize) or over all, of the chosen.
void ChosenWeights(const float* z, int64_t n, std::span<const int32_t> chosen, bool normalize, float* weights) {
  const float shift = Shift(z, n, chosen, normalize);
  const float sum = SumExp(z, n, shift, chosen, normalize);
  for (size_t j = 0; j < chosen.size(); ++j) weights[j] = ExpScalar(z[chosen[j]] - shift) / sum;
}

}  // namespace

void RouteTopK(CpuContext& context, const Tensor& logits, int64_t top_k, bool normalize, int32_t* experts,
               float* weights) {
  LOCKSTEP_CHECK(logits.dtype == DType::kF32 && top_k >= 1 && top_k <= logits.cols, "shapes of a router");
  ForRows(context, logits.rows, logits.cols * 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* z = static_cast<const float*>(logits.Row(t));
      const std::span<int32_t> chosen(experts + t * top_k, static_cast<size_t>(top_k));
      ChooseLargest(z, logits.cols, top_k, chosen.data());
      ChosenWeights(z, logits.cols, chosen, normalize, weights + t * top_k);
    }
  });
}

void RouteGiven(CpuContext& context, const Tensor& logits, std::span<const int32_t> experts, bool normalize,
                float* weights) {
  LOCKSTEP_CHECK(logits.dtype == DType::kF32, "a router computes in fp32");
  if (logits.rows == 0) return;
  const size_t top_k = experts.size() / static_cast<size_t>(logits.rows);
  LOCKSTEP_CHECK(top_k >= 1 && top_k * static_cast<size_t>(logits.rows) == experts.size(), "shapes of a router");
  ForRows(context, logits.rows, logits.cols * 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const size_t first = static_cast<size_t>(t) * top_k;
      const std::span<const int32_t> chosen = experts.subspan(first, top_k);
      for (const int32_t expert : chosen) LOCKSTEP_CHECK(expert >= 0 && expert < logits.cols, "no such expert");
      ChosenWeights(static_cast<const float*>(logits.Row(t)), logits.cols, chosen, normalize, weights + first);
    }
  });
}

void RouteTopKBackward(CpuContext& context, const Tensor& logits, std::span<const int32_t> experts, bool normalize,
                       const float* products, const Tensor& d_logits) {
  LOCKSTEP_CHECK(logits.dtype == DType::kF32 && d_logits.dtype == DType::kF32, "a router computes in fp32");
  if (logits.rows == 0) return;
  const int64_t n = logits.cols, top_k = static_cast<int64_t>(experts.size()) / logits.rows;
  ForRows(context, logits.rows, n * 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* z = static_cast<const float*>(logits.Row(t));
      float* d = static_cast<float*>(d_logits.Row(t));
      const std::span<const int32_t> chosen =
          experts.subspan(static_cast<size_t>(t * top_k), static_cast<size_t>(top_k));
      const float largest = Shift(z, n, chosen, normalize);
      const float sum = SumExp(z, n, largest, chosen, normalize);
      float total = 0;
      for (int64_t j = 0; j < top_k; ++j) total += products[t * top_k + j];
      if (normalize) {
        std::fill(d, d + n, 0.0f);
        for (const int32_t expert : chosen) d[expert] = -total * (ExpScalar(z[expert] - largest) / sum);
      } else {
        for (int64_t i = 0; i < n; ++i) d[i] = -total * (ExpScalar(z[i] - largest) / sum);
      }
      for (int64_t j = 0; j < top_k; ++j) d[chosen[j]] += products[t * top_k + j];
    }
  });
}

void GatherRows(CpuContext& context, const Tensor& x, std::span<const int32_t> rows, const float* scale,
                const Tensor& out) {
  LOCKSTEP_CHECK(x.dtype == out.dtype && x.cols == out.cols && static_cast<int64_t>(rows.size()) == out.rows,
                 "shapes of a gather");
  ForRows(context, out.rows, out.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t row = rows[static_cast<size_t>(i)];
      LOCKSTEP_CHECK(row >= 0 && row < x.rows, "wanted row is not in the tensor");
      if (scale == nullptr) {
        std::memcpy(out.Row(i), x.Row(row), static_cast<size_t>(x.cols) * DTypeSize(x.dtype));
        continue;
      }
      const __m256 factor = _mm256_set1_ps(scale[i]);
      for (int64_t c = 0; c < x.cols; c += kLanes) {
        const __m256 v = Load(x.dtype, Offset(x.dtype, x.Row(row), c), x.cols - c);
        Store(out.dtype, Offset(out.dtype, out.Row(i), c), _mm256_mul_ps(v, factor), x.cols - c);
      }
    }
  });
}

void CombineRows(CpuContext& context, const Tensor& x, std::span<const int32_t> slots, const float* weights,
                 const Tensor& residual, const Tensor& out) {
  if (out.rows == 0) return;
  const int64_t top_k = static_cast<int64_t>(slots.size()) / out.rows;
  LOCKSTEP_CHECK(top_k * out.rows == static_cast<int64_t>(slots.size()) && x.cols == out.cols, "shapes of a combine");
  ForRows(context, out.rows, out.cols * top_k, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t c = 0; c < out.cols; c += kLanes) {
        const int64_t n = out.cols - c;
        __m256 sum = _mm256_setzero_ps();
        for (int64_t j = t * top_k; j < (t + 1) * top_k; ++j) {
          const __m256 v = Load(x.dtype, Offset(x.dtype, x.Row(slots[static_cast<size_t>(j)]), c), n);
          sum = _mm256_fmadd_ps(_mm256_set1_ps(weights == nullptr ? 1.0f : weights[j]), v, sum);
        }
        void* to = Offset(out.dtype, out.Row(t), c);
        if (residual.data != nullptr) {
          const __m256 other = Load(residual.dtype, Offset(residual.dtype, residual.Row(t), c), n);
          Store(out.dtype, to, sum, n);
          sum = _mm256_add_ps(other, Load(out.dtype, to, n));
        }
        Store(out.dtype, to, sum, n);
      }
    }
  });
}

void RowDots(CpuContext& context, const Tensor& a, const Tensor& b, float* out) {
  LOCKSTEP_CHECK(a.rows == b.rows && a.cols == b.cols, "shapes of row dots");
  ForRows(context, a.rows, a.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      __m256 sum = _mm256_setzero_ps();
      for (int64_t c = 0; c < a.cols; c += kLanes) {
        const __m256 u = Load(a.dtype, Offset(a.dtype, a.Row(i), c), a.cols - c);
        sum = _mm256_fmadd_ps(u, Load(b.dtype, Offset(b.dtype, b.Row(i), c), b.cols - c), sum);
      }
      out[i] = SumLanes(sum);
    }
  });
}

}  // namespace lockstep::cpu
