// A weight matrix W[n, k] (n outputs, k inputs; the Hugging Face layout of a linear layer) in the layout that the GEMM
// streams: panels of 16 outputs, [ceil(n/16)][k][16], in the storage dtype. The tail of the last panel is zero.
#ifndef LOCKSTEP_ENGINE_KERNELS_PACKED_MATRIX_H_
#define LOCKSTEP_ENGINE_KERNELS_PACKED_MATRIX_H_

#include <cstdint>

#include "engine/tensor/tensor.h"

namespace lockstep {

inline constexpr int64_t kPanelWidth = 16;

class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(DType dtype, int64_t n, int64_t k);

  // Copies rows [row_begin, row_begin + rows.rows) from row-major `rows` [r, k] of any dtype (rounded to ours). Rows
  // may come in any order and in parts; calls on disjoint rows may run concurrently when they share no panel.
  void SetRows(int64_t row_begin, const Tensor& rows);
  // The inverse, for export: writes rows to row-major `rows`, in its dtype.
  void GetRows(int64_t row_begin, const Tensor& rows) const;

  DType dtype() const { return dtype_; }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t num_panels() const { return (n_ + kPanelWidth - 1) / kPanelWidth; }
  // Panel p: [k][16].
  const void* Panel(int64_t panel) const {
    return static_cast<const char*>(buffer_.data()) +
           panel * k_ * kPanelWidth * static_cast<int64_t>(DTypeSize(dtype_));
  }
  size_t bytes() const { return buffer_.bytes(); }

 private:
  DType dtype_ = DType::kF32;
  int64_t n_ = 0;
  int64_t k_ = 0;
  Buffer buffer_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_KERNELS_PACKED_MATRIX_H_
