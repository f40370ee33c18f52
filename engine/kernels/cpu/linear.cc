#include "engine/kernels/cpu/linear.h"

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

// destination [cols][count] = x rows [row, row + count), transposed.
void PackTransposed(const Tensor& x, int64_t row, int64_t count, float* destination) {
  if (count == 1) {
    ConvertToFloat(x.dtype, x.Row(row), destination, static_cast<size_t>(x.cols));
    return;
  }
  float chunk[kChunk];
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t k = 0; k < x.cols; k += kChunk) {
      const int64_t n = std::min(kChunk, x.cols - k);
      ConvertToFloat(x.dtype, At(x, row + r, k), chunk, static_cast<size_t>(n));
      float* to = destination + k * count + r;
      for (int64_t i = 0; i < n; ++i) to[i * count] = chunk[i];
    }
  }
}

// destination [rows][count] = columns [column, column + count) of d.
void PackColumns(const Tensor& d, int64_t column, int64_t count, float* destination) {
  const size_t element = DTypeSize(d.dtype);
  for (int64_t t = 0; t < d.rows; ++t) {
    const char* from = At(d, t, column);
    float* to = destination + t * count;
    if (element == 4) {
      std::memcpy(to, from, static_cast<size_t>(count) * 4);
    } else {
      // Eight halves at once where the row has them; the tile never takes more than eight columns.
      uint16_t halves[8] = {};
      float values[8];
      std::memcpy(halves, from, static_cast<size_t>(count) * 2);
      ConvertToFloat(d.dtype, halves, values, 8);
      std::memcpy(to, values, static_cast<size_t>(count) * 4);
    }
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
