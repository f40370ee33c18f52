// Carver: tensors out of one block of memory. With a null base it only counts bytes, so the size of a block and its
// layout come from the same lines of code.
#ifndef LOCKSTEP_ENGINE_TENSOR_CARVER_H_
#define LOCKSTEP_ENGINE_TENSOR_CARVER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "engine/tensor/tensor_view.h"

namespace lockstep {

class Carver {
 public:
  // Each tensor begins at a multiple of `alignment` bytes: a cache line of the CPU.
  explicit Carver(void* base, size_t alignment = 64) : base_(static_cast<char*>(base)), alignment_(alignment) {}

  Tensor Take(DType dtype, int64_t rows, int64_t cols) {
    return Tensor(TakeBytes(static_cast<size_t>(rows * cols) * DTypeSize(dtype)), dtype, rows, cols);
  }
  template <typename T>
  T* TakeArray(int64_t count) {
    return static_cast<T*>(TakeBytes(static_cast<size_t>(count) * sizeof(T)));
  }
  size_t Mark() const { return used_; }
  // Gives everything taken since `mark` back: what comes next lies over it.
  void Rewind(size_t mark) { used_ = mark; }
  // The most that was taken at a time.
  size_t bytes() const { return peak_; }

 private:
  void* TakeBytes(size_t bytes) {
    void* data = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + alignment_ - 1) / alignment_ * alignment_;
    peak_ = std::max(peak_, used_);
    return data;
  }

  char* base_;
  size_t alignment_;
  size_t used_ = 0;
  size_t peak_ = 0;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TENSOR_CARVER_H_
