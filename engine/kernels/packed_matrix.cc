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

template <typename T>
void Gather(const T* panel_column, int64_t k, T* row) {
  for (int64_t i = 0; i < k; ++i) row[i] = panel_column[i * kPanelWidth];
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
  std::vector<char> row(static_cast<size_t>(k_) * DTypeSize(dtype_));
  for (int64_t r = 0; r < rows.rows; ++r) {
    const int64_t n = row_begin + r;
    const int64_t at = n / kPanelWidth * k_ * kPanelWidth + n % kPanelWidth;
    if (dtype_ == DType::kF32) {
      Gather(buffer_.As<float>() + at, k_, reinterpret_cast<float*>(row.data()));
    } else {
      Gather(buffer_.As<uint16_t>() + at, k_, reinterpret_cast<uint16_t*>(row.data()));
    }
    ConvertRow(dtype_, row.data(), rows.dtype, rows.Row(r), k_, scratch);
  }
}

}  // namespace lockstep
