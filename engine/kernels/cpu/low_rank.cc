#include "engine/kernels/cpu/low_rank.h"

#include <algorithm>

#include "engine/base/check.h"
#include "engine/kernels/cpu/for_rows.h"
#include "engine/kernels/cpu/vector_math.h"

namespace lockstep::cpu {
namespace {

constexpr int64_t kRanks = 4;     // rows of the small factor that one pass over x serves
constexpr int64_t kColumns = 16;  // columns of a tile of OuterSums

// out[t][j] = sum over c of x[t, c] m[j][c]: 8 lanes over c, then the lane tree. x [T, cols], m [r][cols], out [T][r].
void RowProducts(CpuContext& context, const Tensor& x, const float* m, int64_t r, float* out) {
  const int64_t cols = x.cols;
  ForRows(context, x.rows, cols * r, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const void* row = x.Row(t);
      for (int64_t j = 0; j < r; j += kRanks) {
        const int64_t count = std::min(kRanks, r - j);
        __m256 sums[kRanks] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int64_t c = 0; c < cols; c += kLanes) {
          const __m256 value = Load(x.dtype, Offset(x.dtype, row, c), cols - c);
          for (int64_t i = 0; i < count; ++i) {
            sums[i] = _mm256_fmadd_ps(value, LoadFloats(m + (j + i) * cols + c, cols - c), sums[i]);
          }
        }
        for (int64_t i = 0; i < count; ++i) out[t * r + j + i] = SumLanes(sums[i]);
      }
    }
  });
}

// Where OuterSums adds element (j, c): at data[j * rank_stride + c * column_stride].
struct SmallGradient {
  float* data = nullptr;
  int64_t rank_stride = 0;
  int64_t column_stride = 0;
};

// gradient(j, c) += scale * sum over t of p[t][j] x[t, c]: one fma chain in ascending t. p [T][r], x [T, cols].
void OuterSums(CpuContext& context, const float* p, const Tensor& x, int64_t r, float scale,
               const SmallGradient& gradient) {
  context.pool.Run([&](int thread, int threads) {
    const auto [begin, end] = StaticSplit(x.cols, kColumns, thread, threads);
    for (int64_t c = begin; c < end; c += kColumns) {
      const int64_t columns = std::min(kColumns, x.cols - c);
      for (int64_t j = 0; j < r; j += kRanks) {
        const int64_t count = std::min(kRanks, r - j);
        __m256 sums[kRanks][2];
        for (auto& pair : sums) pair[0] = pair[1] = _mm256_setzero_ps();
        for (int64_t t = 0; t < x.rows; ++t) {
          const void* at = Offset(x.dtype, x.Row(t), c);
          const __m256 low = Load(x.dtype, at, columns);
          const __m256 high =
              columns > kLanes ? Load(x.dtype, Offset(x.dtype, at, kLanes), columns - kLanes) : _mm256_setzero_ps();
          for (int64_t i = 0; i < count; ++i) {
            const __m256 factor = _mm256_set1_ps(p[t * r + j + i]);
            sums[i][0] = _mm256_fmadd_ps(factor, low, sums[i][0]);
            sums[i][1] = _mm256_fmadd_ps(factor, high, sums[i][1]);
          }
        }
        for (int64_t i = 0; i < count; ++i) {
          alignas(32) float values[kColumns];
          _mm256_store_ps(values, sums[i][0]);
          _mm256_store_ps(values + kLanes, sums[i][1]);
          float* to = gradient.data + (j + i) * gradient.rank_stride + c * gradient.column_stride;
          for (int64_t k = 0; k < columns; ++k) to[k * gradient.column_stride] += scale * values[k];
        }
      }
    }
  });
}

}  // namespace

void LowRankBackward(CpuContext& context, const Tensor& d_out, const Tensor& x, const Tensor& a, const Tensor& b,
                     float scale, const Tensor& d_a, const Tensor& d_b) {
  const int64_t r = a.rows, T = x.rows, n = d_out.cols, k = x.cols;
  LOCKSTEP_CHECK(d_out.rows == T && a.cols == k && b.rows == n && b.cols == r && d_a.rows == r && d_a.cols == k &&
                     d_b.rows == n && d_b.cols == r,
                 "shapes of a low-rank update");
  LOCKSTEP_CHECK(a.stride == k && b.stride == r && d_a.stride == k && d_b.stride == r, "adapters are dense");
  float* b_transposed = context.general.Get<float>(static_cast<size_t>(n * r + 2 * T * r));
  float* down = b_transposed + n * r;  // x A^T [T][r]
  float* up = down + T * r;            // d_out B [T][r]
  for (int64_t j = 0; j < r; ++j) {
    for (int64_t i = 0; i < n; ++i) b_transposed[j * n + i] = b.As<float>()[i * r + j];
  }
  RowProducts(context, x, a.As<float>(), r, down);
  RowProducts(context, d_out, b_transposed, r, up);
  OuterSums(context, up, x, r, scale, {d_a.As<float>(), k, 1});
  OuterSums(context, down, d_out, r, scale, {d_b.As<float>(), 1, r});
}

}  // namespace lockstep::cpu
