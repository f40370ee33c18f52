// The device as the engine sees it: memory, streams, events and graphs with owners, and absl::Status for what the
// runtime says. Everything is of the current device; a process uses one.
//
// A device that fails (out of memory, a lost context) is an operating error: RESOURCE_EXHAUSTED or INTERNAL, in one
// line that names what was being done. None of these types is thread safe.
#ifndef LOCKSTEP_ENGINE_CUDA_DEVICE_H_
#define LOCKSTEP_ENGINE_CUDA_DEVICE_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lockstep::cuda {

// OK, or what the runtime says about `doing` ("copying the batch to the device"): DeviceStatus of errors/errors.h.
absl::Status CudaStatus(cudaError_t error, absl::string_view doing);

// The results of a list of calls that put work on a stream. The first error is kept; the calls after it do no harm,
// since a stream that has failed runs nothing.
class Calls {
 public:
  void operator()(cudaError_t error, const char* doing) {
    if (error_ != cudaSuccess || error == cudaSuccess) return;
    error_ = error;
    doing_ = doing;
  }
  bool ok() const { return error_ == cudaSuccess; }
  absl::Status status() const { return CudaStatus(error_, doing_); }

 private:
  cudaError_t error_ = cudaSuccess;
  const char* doing_ = "";
};

// Bytes of the device's memory.
struct DeviceMemory {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
};
absl::StatusOr<DeviceMemory> ReadDeviceMemory();

class Stream;

// Owner of device memory, 256-byte aligned, not initialised. Freeing waits for the device.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // `purpose` is named in the error ("weights"). 0 bytes: no memory.
  static absl::StatusOr<DeviceBuffer> Allocate(size_t bytes, absl::string_view purpose);
  DeviceBuffer(DeviceBuffer&& other) noexcept { Swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    DeviceBuffer(std::move(other)).Swap(*this);
    return *this;
  }
  ~DeviceBuffer();

  void* data() const { return data_; }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  absl::Status Zero(const Stream& stream) const;

 private:
  void Swap(DeviceBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Owner of host memory that the device copies from and to without the host's help. The host must not touch a buffer
// while a copy may be under way.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static absl::StatusOr<PinnedBuffer> Allocate(size_t bytes, absl::string_view purpose);
  PinnedBuffer(PinnedBuffer&& other) noexcept { Swap(other); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    PinnedBuffer(std::move(other)).Swap(*this);
    return *this;
  }
  ~PinnedBuffer();

  void* data() const { return data_; }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void Swap(PinnedBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// What is behind a point of a stream.
class Event {
 public:
  Event() = default;
  static absl::StatusOr<Event> Create();
  Event(Event&& other) noexcept { std::swap(event_, other.event_); }
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event();

  absl::Status Record(const Stream& stream) const;
  // Waits on the host until what was recorded has happened; at once where nothing was.
  absl::Status Wait() const;
  // Whether it has.
  absl::StatusOr<bool> Happened() const;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Work in order. Not synchronised with the null stream.
class Stream {
 public:
  Stream() = default;  // the null stream
  static absl::StatusOr<Stream> Create();
  Stream(Stream&& other) noexcept { std::swap(stream_, other.stream_); }
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~Stream();

  // Waits on the host for all work. `doing` names the work in the error: failures of kernels appear here.
  absl::Status Wait(absl::string_view doing) const;
  // What comes after on this stream waits on the device for the event.
  absl::Status WaitFor(const Event& event) const;
  absl::Status CopyToDevice(void* device, const void* host, size_t bytes) const;
  absl::Status CopyToHost(void* host, const void* device, size_t bytes) const;
  absl::Status CopyOnDevice(void* to, const void* from, size_t bytes) const;
  cudaStream_t get() const { return stream_; }

 private:
  absl::Status Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, const char* doing) const;
  cudaStream_t stream_ = nullptr;
};

// A list of work that is started as one.
class Graph {
 public:
  Graph() = default;
  // What `enqueue` puts on `stream`, which runs nothing meanwhile. In it: no allocation, no wait, nothing that another
  // stream's work must come before.
  static absl::StatusOr<Graph> Capture(const Stream& stream, absl::FunctionRef<absl::Status()> enqueue);
  Graph(Graph&& other) noexcept { std::swap(exec_, other.exec_); }
  Graph& operator=(Graph&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }
  ~Graph();

  absl::Status Launch(const Stream& stream) const;

 private:
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_DEVICE_H_
