// Buffer: the owner of memory. The views of it are in tensor_view.h.
#ifndef LOCKSTEP_ENGINE_TENSOR_TENSOR_H_
#define LOCKSTEP_ENGINE_TENSOR_TENSOR_H_

#include <cstdint>
#include <memory>

#include "engine/tensor/dtype.h"
#include "engine/tensor/tensor_view.h"

namespace lockstep {

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

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TENSOR_TENSOR_H_
