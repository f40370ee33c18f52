// Tensor: a typed view of memory that a Buffer owns. Copying a Tensor copies the view. No arithmetic lives here, and
// nothing but the standard library is included: device code takes this header.
#ifndef LOCKSTEP_ENGINE_TENSOR_TENSOR_VIEW_H_
#define LOCKSTEP_ENGINE_TENSOR_TENSOR_VIEW_H_

#include <cstddef>
#include <cstdint>

namespace lockstep {

// Storage types. Their conversions: dtype.h.
enum class DType : uint8_t { kF32 = 0, kF16 = 1, kBF16 = 2 };

constexpr size_t DTypeSize(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

enum class Device : uint8_t { kCpu = 0, kCuda = 1 };

// Row-major matrix view [rows, cols] with a row stride in elements (>= cols). Vectors are one row. Everything in the
// engine is at most two-dimensional once heads are folded into columns: [tokens, heads * head_dim].
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device = Device::kCpu;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  Tensor() = default;
  Tensor(void* data, DType dtype, int64_t rows, int64_t cols) : Tensor(data, dtype, rows, cols, cols) {}
  Tensor(void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride)
      : data(data), dtype(dtype), rows(rows), cols(cols), stride(stride) {}

  void* Row(int64_t row) const {
    return static_cast<char*>(data) + row * stride * static_cast<int64_t>(DTypeSize(dtype));
  }
  // Rows [begin, begin + count); columns [begin, begin + count).
  Tensor Rows(int64_t begin, int64_t count) const { return Tensor(Row(begin), dtype, count, cols, stride); }
  Tensor Cols(int64_t begin, int64_t count) const {
    return Tensor(static_cast<char*>(data) + begin * static_cast<int64_t>(DTypeSize(dtype)), dtype, rows, count,
                  stride);
  }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data);
  }
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TENSOR_TENSOR_VIEW_H_
