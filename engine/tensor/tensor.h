// Tensor: a typed view of memory that a Buffer owns. Copying a Tensor copies the view. No arithmetic lives here.
#ifndef LOCKSTEP_ENGINE_TENSOR_TENSOR_H_
#define LOCKSTEP_ENGINE_TENSOR_TENSOR_H_

#include <cstdint>
#include <memory>

#include "engine/tensor/dtype.h"

namespace lockstep {

enum class Device : uint8_t { kCpu = 0, kCuda = 1 };

// Owner of bytes: 64-byte aligned, zeroed, huge pages asked for when large. Move only. An empty Buffer has no bytes.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  Buffer(Buffer&&) = default;
  Buffer& operator=(Buffer&&) = default;

  void* data() { return data_.get(); }
  const void* data() const { return data_.get(); }
  template <typename T>
  T* As() {
    return static_cast<T*>(data());
  }
  template <typename T>
  const T* As() const {
    return static_cast<const T*>(data());
  }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* pointer) const;
  };
  std::unique_ptr<void, Free> data_;
  size_t bytes_ = 0;
};

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

#endif  // LOCKSTEP_ENGINE_TENSOR_TENSOR_H_
