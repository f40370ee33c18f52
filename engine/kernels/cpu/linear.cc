#include "engine/kernels/cpu/linear.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "engine/base/check.h"
#include "engine/kernels/cpu/gemm.h"

namespace lockstep::cpu {
namespace {

constexpr int64_t kChunk = 512;  // columns converted at a time on the stack

const char* At(const Tensor& tensor, int64_t row, int64_t column) {
  return static_cast<const char*>(tensor.Row(row)) + column * static_cast<int64_t>(DTypeSize(tensor.dtype));
}

char* MutableAt(const Tensor& tensor, int64_t row, int64_t column) {
  return static_cast<char*>(tensor.Row(row)) + column * static_cast<int64_t>(DTypeSize(tensor.dtype));
}

// Eight elements as FP32.
template <DType kType>
inline __m256 Load8(const char* from) {
  if constexpr (kType == DType::kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(from));
  } else {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if constexpr (kType == DType::kF16) return _mm256_cvtph_ps(words);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
  }
}

// Transposes 8 x 8 in place.
inline void Transpose8(__m256 (&rows)[8]) {
  __m256 pairs[8];
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  __m256 quads[8];
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      quads[4 * i + 2 * j] = _mm256_shuffle_ps(pairs[4 * i + j], pairs[4 * i + 2 + j], 0x44);
      quads[4 * i + 2 * j + 1] = _mm256_shuffle_ps(pairs[4 * i + j], pairs[4 * i + 2 + j], 0xEE);
    }
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(quads[i], quads[4 + i], 0x20);
    rows[4 + i] = _mm256_permute2f128_ps(quads[i], quads[4 + i], 0x31);
  }
}

// Columns [0, result) of PackTransposed: eight at a time, each of the eight stores reaching over into the place of the
// following columns, so the last ones are left to the caller.
template <DType kType>
int64_t PackTransposedWide(const Tensor& x, int64_t row, int64_t count, float* destination) {
  int64_t k = 0;
  for (; k + 15 <= x.cols; k += 8) {
    __m256 tile[8] = {};
    for (int64_t r = 0; r < count; ++r) tile[r] = Load8<kType>(At(x, row + r, k));
    Transpose8(tile);
    for (int64_t i = 0; i < 8; ++i) _mm256_storeu_ps(destination + (k + i) * count, tile[i]);
  }
  return k;
}

// destination [cols][count] = x rows [row, row + count), transposed; count <= 8.
void PackTransposed(const Tensor& x, int64_t row, int64_t count, float* destination) {
  if (count == 1) {
    ConvertToFloat(x.dtype, x.Row(row), destination, static_cast<size_t>(x.cols));
    return;
  }
  const int64_t done = x.dtype == DType::kF32   ? PackTransposedWide<DType::kF32>(x, row, count, destination)
                       : x.dtype == DType::kF16 ? PackTransposedWide<DType::kF16>(x, row, count, destination)
                                                : PackTransposedWide<DType::kBF16>(x, row, count, destination);
  float tail[16];  // fewer than 15 columns are left
  const int64_t left = x.cols - done;
  for (int64_t r = 0; r < count; ++r) {
    ConvertToFloat(x.dtype, At(x, row + r, done), tail, static_cast<size_t>(left));
    for (int64_t i = 0; i < left; ++i) destination[(done + i) * count + r] = tail[i];
  }
}

// Rows [0, result) of PackColumns, eight columns a load and a store; see PackTransposedWide.
template <DType kType>
int64_t PackColumnsWide(const Tensor& d, int64_t column, int64_t count, float* destination) {
  if (column + 8 > d.cols) return 0;
  int64_t t = 0;
  for (; t + 8 <= d.rows; ++t) _mm256_storeu_ps(destination + t * count, Load8<kType>(At(d, t, column)));
  return t;
}

// destination [rows][count] = columns [column, column + count) of d; count <= 8.
void PackColumns(const Tensor& d, int64_t column, int64_t count, float* destination) {
  const int64_t done = d.dtype == DType::kF32   ? PackColumnsWide<DType::kF32>(d, column, count, destination)
                       : d.dtype == DType::kF16 ? PackColumnsWide<DType::kF16>(d, column, count, destination)
                                                : PackColumnsWide<DType::kBF16>(d, column, count, destination);
  for (int64_t t = done; t < d.rows; ++t) {
    ConvertToFloat(d.dtype, At(d, t, column), destination + t * count, static_cast<size_t>(count));
  }
}

// destination [k_count][16]: rows n_begin .. of W^T's panel, that is W[n_begin + i][16 * panel + j].
template <typename T>
void TransposePanel(const PackedMatrix& w, int64_t n_begin, int64_t panel, int64_t n_count, T* destination) {
  const int64_t columns = std::min(kPanelWidth, w.k() - panel * kPanelWidth);
  for (int64_t i = 0; i < n_count; i += kPanelWidth) {
    const int64_t rows = std::min(kPanelWidth, n_count - i);
    const T* from = static_cast<const T*>(w.Panel((n_begin + i) / kPanelWidth)) + panel * kPanelWidth * kPanelWidth;
    T* to = destination + i * kPanelWidth;
    if (columns < kPanelWidth) std::fill(to, to + rows * kPanelWidth, T{});
    if (rows == kPanelWidth && columns == kPanelWidth) {
      for (int64_t r = 0; r < kPanelWidth; ++r) {
        for (int64_t j = 0; j < kPanelWidth; ++j) to[r * kPanelWidth + j] = from[j * kPanelWidth + r];
      }
    } else {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = 0; j < columns; ++j) to[r * kPanelWidth + j] = from[j * kPanelWidth + r];
      }
    }
  }
}

// store(accumulators [+ bias]) [then + residual, store] into columns [column, column + count) of a row of out.
void StoreRow(const Tensor& bias, const Tensor& residual, const Tensor& out, int64_t row, int64_t column, int64_t count,
              const float* accumulators) {
  float values[kChunk];
  float other[kChunk];
  const size_t n = static_cast<size_t>(count);
  char* to = MutableAt(out, row, column);
  const float* result = accumulators;
  if (bias.data != nullptr) {
    ConvertToFloat(bias.dtype, At(bias, 0, column), other, n);
    for (int64_t i = 0; i < count; ++i) values[i] = accumulators[i] + other[i];
    result = values;
  }
  if (residual.data != nullptr) {
    ConvertToFloat(residual.dtype, At(residual, row, column), other, n);
    ConvertFromFloat(out.dtype, result, to, n);
    ConvertToFloat(out.dtype, to, values, n);
    for (int64_t i = 0; i < count; ++i) values[i] += other[i];
    result = values;
  }
  ConvertFromFloat(out.dtype, result, to, n);
}

}  // namespace

void Linear(CpuContext& context, const Tensor& x, const PackedMatrix& w, const Tensor& bias, const Tensor& residual,
            const Tensor& out) {
  LOCKSTEP_CHECK(x.cols == w.k() && out.cols == w.n() && out.rows == x.rows, "shapes of a linear layer");
  GemmPackedB(
      context, {x.rows, w.n(), w.k(), w.dtype()},
      [&](int64_t row, int64_t count, float* to) { PackTransposed(x, row, count, to); }, w.Panel(0),
      [&](int64_t row, int64_t column, int64_t count, const float* accumulators) {
        StoreRow(bias, residual, out, row, column, count, accumulators);
      });
}

void LinearPanels(CpuContext& context, const Tensor& x, const PackedMatrix& w, int64_t panel_begin, int64_t panel_count,
                  const Tensor& out) {
  LOCKSTEP_CHECK(x.cols == w.k() && out.dtype == DType::kF32, "shapes of a panel product");
  GemmPackedB(
      context, {x.rows, panel_count * kPanelWidth, w.k(), w.dtype()},
      [&](int64_t row, int64_t count, float* to) { PackTransposed(x, row, count, to); }, w.Panel(panel_begin),
      [&](int64_t row, int64_t column, int64_t count, const float* accumulators) {
        std::memcpy(MutableAt(out, row, column), accumulators, static_cast<size_t>(count) * sizeof(float));
      });
}

void LinearBackwardInput(CpuContext& context, const Tensor& d_out, const PackedMatrix& w, const Tensor& d_x,
                         bool accumulate) {
  LOCKSTEP_CHECK(d_out.cols == w.n(), "shapes of a linear layer's backward");
  LinearBackwardInputRows(context, d_out, w, 0, d_x, accumulate);
}

void LinearBackwardInputRows(CpuContext& context, const Tensor& d_out, const PackedMatrix& w, int64_t row_begin,
                             const Tensor& d_x, bool accumulate) {
  LOCKSTEP_CHECK(row_begin % kPanelWidth == 0 && d_x.cols == w.k() && d_out.rows == d_x.rows,
                 "shapes of a linear layer's backward");
  GemmPackingB(
      context, {d_out.rows, w.k(), d_out.cols, w.dtype()},
      [&](int64_t row, int64_t count, float* to) { PackTransposed(d_out, row, count, to); },
      [&](int64_t panel, int64_t n_begin, int64_t n_count, void* to) {
        if (w.dtype() == DType::kF32) {
          TransposePanel(w, row_begin + n_begin, panel, n_count, static_cast<float*>(to));
        } else {
          TransposePanel(w, row_begin + n_begin, panel, n_count, static_cast<uint16_t*>(to));
        }
      },
      [&](int64_t row, int64_t column, int64_t count, const float* accumulators) {
        float values[kChunk];
        const float* result = accumulators;
        char* to = MutableAt(d_x, row, column);
        if (accumulate) {
          ConvertToFloat(d_x.dtype, to, values, static_cast<size_t>(count));
          for (int64_t i = 0; i < count; ++i) values[i] += accumulators[i];
          result = values;
        }
        ConvertFromFloat(d_x.dtype, result, to, static_cast<size_t>(count));
      });
}

void LinearBackwardWeight(CpuContext& context, const Tensor& d_out, const Tensor& x, const Tensor& d_w,
                          const Tensor& d_bias) {
  LOCKSTEP_CHECK(d_out.rows == x.rows && d_w.rows == d_out.cols && d_w.cols == x.cols && d_w.dtype == DType::kF32,
                 "shapes of a linear layer's backward");
  const size_t element = DTypeSize(x.dtype);
  GemmPackingB(
      context, {d_out.cols, x.cols, x.rows, x.dtype},
      [&](int64_t row, int64_t count, float* to) { PackColumns(d_out, row, count, to); },
      [&](int64_t panel, int64_t t_begin, int64_t t_count, void* to) {
        const int64_t column = panel * kPanelWidth;
        const int64_t columns = std::min(kPanelWidth, x.cols - column);
        char* destination = static_cast<char*>(to);
        for (int64_t t = 0; t < t_count; ++t, destination += kPanelWidth * element) {
          if (columns < kPanelWidth) std::memset(destination, 0, kPanelWidth * element);
          std::memcpy(destination, At(x, t_begin + t, column), static_cast<size_t>(columns) * element);
        }
      },
      [&](int64_t row, int64_t column, int64_t count, const float* accumulators) {
        float* to = static_cast<float*>(d_w.Row(row)) + column;
        for (int64_t i = 0; i < count; ++i) to[i] += accumulators[i];
      });
  if (d_bias.data == nullptr) return;
  context.pool.Run([&](int thread, int threads) {
    const auto [begin, end] = StaticSplit(d_out.cols, 16, thread, threads);
    float values[kChunk];
    float* sums = static_cast<float*>(d_bias.data);
    for (int64_t column = begin; column < end; column += kChunk) {
      const int64_t count = std::min(kChunk, end - column);
      for (int64_t t = 0; t < d_out.rows; ++t) {
        ConvertToFloat(d_out.dtype, At(d_out, t, column), values, static_cast<size_t>(count));
        for (int64_t i = 0; i < count; ++i) sums[column + i] += values[i];
      }
    }
  });
}

}  // namespace lockstep::cpu
