#include "engine/cuda/device.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "engine/cuda/errors/errors.h"

namespace lockstep::cuda {
absl::Status CudaStatus(cudaError_t error, absl::string_view doing) { return DeviceStatus(error, {.what = doing}); }

absl::StatusOr<DeviceMemory> ReadDeviceMemory() {
  DeviceMemory memory;
  const cudaError_t error = cudaMemGetInfo(&memory.free_bytes, &memory.total_bytes);
  if (error != cudaSuccess) return CudaStatus(error, "reading the device's free memory");
  return memory;
}

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(size_t bytes, absl::string_view purpose) {
  DeviceBuffer buffer;
  if (bytes == 0) return buffer;
  const cudaError_t error = cudaMalloc(&buffer.data_, bytes);
  if (error != cudaSuccess) {
    return DeviceStatus(error, {.what = absl::StrCat("allocating device memory for ", purpose), .bytes = bytes});
  }
  buffer.bytes_ = bytes;
  return buffer;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) static_cast<void>(cudaFree(data_));
}

absl::Status DeviceBuffer::Zero(const Stream& stream) const {
  if (bytes_ == 0) return absl::OkStatus();
  return CudaStatus(cudaMemsetAsync(data_, 0, bytes_, stream.get()), "clearing device memory");
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(size_t bytes, absl::string_view purpose) {
  PinnedBuffer buffer;
  if (bytes == 0) return buffer;
  const cudaError_t error = cudaHostAlloc(&buffer.data_, bytes, cudaHostAllocDefault);
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return absl::ResourceExhaustedError(absl::StrCat("allocating pinned memory for ", purpose, ": the machine has no ",
                                                     SizeText(bytes), " of its own memory that can be pinned"));
  }
  if (error != cudaSuccess) return CudaStatus(error, absl::StrCat("allocating pinned memory for ", purpose));
  buffer.bytes_ = bytes;
  return buffer;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) static_cast<void>(cudaFreeHost(data_));
}

absl::StatusOr<Event> Event::Create() {
  Event event;
  const cudaError_t error = cudaEventCreateWithFlags(&event.event_, cudaEventDisableTiming);
  if (error != cudaSuccess) return CudaStatus(error, "creating an event");
  return event;
}

Event::~Event() {
  if (event_ != nullptr) static_cast<void>(cudaEventDestroy(event_));
}

absl::Status Event::Record(const Stream& stream) const {
  return CudaStatus(cudaEventRecord(event_, stream.get()), "recording an event");
}

absl::Status Event::Wait() const { return CudaStatus(cudaEventSynchronize(event_), "waiting for the device"); }

absl::StatusOr<bool> Event::Happened() const {
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) {
    static_cast<void>(cudaGetLastError());
    return false;
  }
  if (error != cudaSuccess) return CudaStatus(error, "asking for an event");
  return true;
}

absl::StatusOr<Stream> Stream::Create() {
  Stream stream;
  const cudaError_t error = cudaStreamCreateWithFlags(&stream.stream_, cudaStreamNonBlocking);
  if (error != cudaSuccess) return CudaStatus(error, "creating a stream");
  return stream;
}

Stream::~Stream() {
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
}

absl::Status Stream::Wait(absl::string_view doing) const { return CudaStatus(cudaStreamSynchronize(stream_), doing); }

absl::Status Stream::WaitFor(const Event& event) const {
  return CudaStatus(cudaStreamWaitEvent(stream_, event.get(), 0), "waiting for an event on the device");
}

absl::Status Stream::Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, const char* doing) const {
  if (bytes == 0) return absl::OkStatus();  // the addresses may be null
  return CudaStatus(cudaMemcpyAsync(to, from, bytes, kind, stream_), doing);
}

absl::Status Stream::CopyToDevice(void* device, const void* host, size_t bytes) const {
  return Copy(device, host, bytes, cudaMemcpyHostToDevice, "copying to the device");
}

absl::Status Stream::CopyToHost(void* host, const void* device, size_t bytes) const {
  return Copy(host, device, bytes, cudaMemcpyDeviceToHost, "copying from the device");
}

absl::Status Stream::CopyOnDevice(void* to, const void* from, size_t bytes) const {
  return Copy(to, from, bytes, cudaMemcpyDeviceToDevice, "copying on the device");
}

absl::StatusOr<Graph> Graph::Capture(const Stream& stream, absl::FunctionRef<absl::Status()> enqueue) {
  cudaError_t error = cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal);
  if (error != cudaSuccess) return CudaStatus(error, "beginning a graph");
  const absl::Status enqueued = enqueue();
  cudaGraph_t recorded = nullptr;
  error = cudaStreamEndCapture(stream.get(), &recorded);  // also where it failed: the stream must run again
  Graph graph;
  if (enqueued.ok() && error == cudaSuccess) error = cudaGraphInstantiate(&graph.exec_, recorded, 0);
  if (recorded != nullptr) static_cast<void>(cudaGraphDestroy(recorded));
  if (!enqueued.ok()) return enqueued;
  if (error != cudaSuccess) return CudaStatus(error, "making a graph");
  return graph;
}

Graph::~Graph() {
  if (exec_ != nullptr) static_cast<void>(cudaGraphExecDestroy(exec_));
}

absl::Status Graph::Launch(const Stream& stream) const {
  return CudaStatus(cudaGraphLaunch(exec_, stream.get()), "starting a graph");
}

}  // namespace lockstep::cuda
