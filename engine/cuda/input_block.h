// InputBlock: arrays that the host fills and the device reads, in one pinned block and its twin on the device, so that
// however many they are, one copy brings them over.
//
//   block.Begin();
//   const auto tokens = block.Add<int32_t>(n);
//   block.Reserve();                       // memory for what was added; the last copy has been made
//   block.Host(tokens)[i] = ...;
//   block.Copy(stream);                    // work behind it on the stream reads block.Device(tokens)
#ifndef LOCKSTEP_ENGINE_CUDA_INPUT_BLOCK_H_
#define LOCKSTEP_ENGINE_CUDA_INPUT_BLOCK_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/cuda/device.h"

namespace lockstep::cuda {

class InputBlock {
 public:
  template <typename T>
  struct Array {
    size_t offset = 0;
  };

  void Begin() { used_ = 0; }
  template <typename T>
  Array<T> Add(int64_t count) {
    return {Take(static_cast<size_t>(count) * sizeof(T))};
  }
  // Grows to the largest set of arrays so far; then no call allocates, and the addresses stay.
  absl::Status Reserve();
  template <typename T>
  T* Host(Array<T> array) const {
    return reinterpret_cast<T*>(host_.As<char>() + array.offset);
  }
  template <typename T>
  T* Device(Array<T> array) const {
    return reinterpret_cast<T*>(device_.As<char>() + array.offset);
  }
  absl::Status Copy(const Stream& stream) { return CopyFirst(used_, stream); }
  // The first `bytes` alone.
  absl::Status CopyFirst(size_t bytes, const Stream& stream);
  size_t bytes() const { return used_; }

 private:
  size_t Take(size_t bytes) {
    constexpr size_t kAlignment = 64;
    const size_t offset = used_;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }
  PinnedBuffer host_;
  DeviceBuffer device_;
  Event copied_;
  bool has_event_ = false;
  size_t used_ = 0;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_INPUT_BLOCK_H_
