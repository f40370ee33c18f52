#include "engine/kernels/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "engine/base/check.h"

namespace lockstep {
namespace {

template <typename T>
void Scatter(const T* row, int64_t k, T* panel_column) {
  for (int64_t i = 0; i < k; ++i) panel_column[i * kPanelWidth] = row[i];
}

// rows [count][k] = the panel's columns [first, first + count): in blocks of k that stay in the first cache for all of
// them.
template <typename T>
void Gather(const T* panel, int64_t first, int64_t count, int64_t k, T* rows) {
  constexpr int64_t kBlock = 128;
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t end = std::min(k, begin + kBlock);
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t i = begin; i < end; ++i) rows[j * k + i] = panel[i * kPanelWidth + first + j];
    }
  }
}

// Rounds one row to `to` by way of FP32. The scratch keeps its capacity over rows.
void ConvertRow(DType from, const void* source, DType to, void* destination, int64_t n, std::vector<float>& scratch) {
  if (from == to) {
    std::memcpy(destination, source, static_cast<size_t>(n) * DTypeSize(to));
    return;
  }
  scratch.resize(static_cast<size_t>(n));
  ConvertToFloat(from, source, scratch.data(), static_cast<size_t>(n));
  ConvertFromFloat(to, scratch.data(), destination, static_cast<size_t>(n));
}

}  // namespace

PackedMatrix::PackedMatrix(DType dtype, int64_t n, int64_t k)
    : dtype_(dtype),
      n_(n),
      k_(k),
      buffer_(static_cast<size_t>((n + kPanelWidth - 1) / kPanelWidth * kPanelWidth * k) * DTypeSize(dtype)) {}

void PackedMatrix::SetRows(int64_t row_begin, const Tensor& rows) {
  LOCKSTEP_CHECK(row_begin >= 0 && row_begin + rows.rows <= n_ && rows.cols == k_, "rows outside of the matrix");
  if (k_ == 0) return;
  std::vector<float> scratch;
  std::vector<char> converted(static_cast<size_t>(k_) * DTypeSize(dtype_));
  for (int64_t r = 0; r < rows.rows; ++r) {
    const int64_t n = row_begin + r;
    ConvertRow(rows.dtype, rows.Row(r), dtype_, converted.data(), k_, scratch);
    const int64_t at = n / kPanelWidth * k_ * kPanelWidth + n % kPanelWidth;
    if (dtype_ == DType::kF32) {
      Scatter(reinterpret_cast<const float*>(converted.data()), k_, buffer_.As<float>() + at);
    } else {
      Scatter(reinterpret_cast<const uint16_t*>(converted.data()), k_, buffer_.As<uint16_t>() + at);
    }
  }
}

void PackedMatrix::GetRows(int64_t row_begin, const Tensor& rows) const {
  LOCKSTEP_CHECK(row_begin >= 0 && row_begin + rows.rows <= n_ && rows.cols == k_, "rows outside of the matrix");
  if (k_ == 0) return;
  std::vector<float> scratch;
  const int64_t row_bytes = k_ * static_cast<int64_t>(DTypeSize(dtype_));
  std::vector<char> gathered(static_cast<size_t>(kPanelWidth * row_bytes));
  for (int64_t r = 0; r < rows.rows;) {
    const int64_t first = (row_begin + r) % kPanelWidth;
    const int64_t count = std::min(kPanelWidth - first, rows.rows - r);
    const void* panel = Panel((row_begin + r) / kPanelWidth);
    if (dtype_ == DType::kF32) {
      Gather(static_cast<const float*>(panel), first, count, k_, reinterpret_cast<float*>(gathered.data()));
    } else {
      Gather(static_cast<const uint16_t*>(panel), first, count, k_, reinterpret_cast<uint16_t*>(gathered.data()));
    }
    for (int64_t j = 0; j < count; ++j, ++r) {
      ConvertRow(dtype_, gathered.data() + j * row_bytes, rows.dtype, rows.Row(r), k_, scratch);
    }
  }
}

}  // namespace lockstep
