#include <cuda_runtime.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/cuda/errors/device_check.h"
#include "engine/cuda/errors/errors.h"
#include "engine/kernels/cuda/digest.h"
#include "weight_sync/device_runtime.h"

namespace lockstep {
namespace {

absl::Status FromCuda(const char* attempted, cudaError_t error, uint64_t bytes = 0) {
  return cuda::DeviceStatus(error, {.what = attempted, .bytes = bytes});
}

// Every call chooses the device first: a thread that has none would get a context on the first GPU.
class CudaRuntime : public DeviceRuntime {
 public:
  CudaRuntime(int device, std::string bus_id) : device_(device), bus_id_(std::move(bus_id)) {}

  absl::Status Bind() override { return FromCuda("choosing the device", cudaSetDevice(device_)); }
  std::string bus_id() const override { return bus_id_; }

  absl::StatusOr<void*> Allocate(uint64_t bytes) override {
    absl::Status status = Bind();
    if (!status.ok()) return status;
    void* memory = nullptr;
    status = FromCuda("allocating for weight updates", cudaMalloc(&memory, bytes), bytes);
    if (!status.ok()) return status;
    return memory;
  }
  void Free(void* memory) override {
    if (Bind().ok()) (void)cudaFree(memory);
  }
  bool IsDeviceMemory(const void* memory) const override {
    cudaPointerAttributes attributes;
    if (cudaSetDevice(device_) != cudaSuccess || cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
      (void)cudaGetLastError();
      return false;
    }
    return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  }

  absl::StatusOr<void*> MakeStream() override {
    absl::Status status = Bind();
    if (!status.ok()) return status;
    cudaStream_t stream = nullptr;
    // Not ordered behind the legacy stream: decoding and training go on beside it.
    status = FromCuda("making a stream", cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    if (!status.ok()) return status;
    return static_cast<void*>(stream);
  }
  void FreeStream(void* stream) override {
    if (Bind().ok()) (void)cudaStreamDestroy(static_cast<cudaStream_t>(stream));
  }
  absl::Status Copy(void* to, const void* from, uint64_t bytes, void* stream) override {
    absl::Status status = Bind();
    if (!status.ok()) return status;
    return FromCuda("copying weights",
                    cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)));
  }
  absl::Status DigestsOfBlocks(const void* data, uint64_t bytes, uint64_t* digests, void* stream) override {
    absl::Status status = Bind();
    if (!status.ok()) return status;
    return FromCuda("digesting weights", cuda::DigestsOfBlocks(data, static_cast<int64_t>(bytes), digests,
                                                               static_cast<cudaStream_t>(stream)));
  }
  absl::StatusOr<bool> StreamDone(void* stream) override {
    absl::Status status = Bind();
    if (!status.ok()) return status;
    return Done("weight updates on a stream", cudaStreamQuery(static_cast<cudaStream_t>(stream)));
  }

  absl::StatusOr<void*> MakeEvent() override {
    absl::Status status = Bind();
    if (!status.ok()) return status;
    cudaEvent_t event = nullptr;
    status =
        FromCuda("making an event", cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventInterprocess));
    if (!status.ok()) return status;
    return static_cast<void*>(event);
  }
  void FreeEvent(void* event) override {
    if (Bind().ok()) (void)cudaEventDestroy(static_cast<cudaEvent_t>(event));
  }
  absl::Status Record(void* event, void* stream) override {
    absl::Status status = Bind();
    if (!status.ok()) return status;
    return FromCuda("recording an event",
                    cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)));
  }
  absl::StatusOr<bool> EventDone(void* event) override {
    absl::Status status = Bind();
    if (!status.ok()) return status;
    return Done("waiting for another process's copy", cudaEventQuery(static_cast<cudaEvent_t>(event)));
  }

  absl::StatusOr<std::string> ExportMemory(void* memory) override {
    absl::Status status = Bind();
    if (!status.ok()) return status;
    cudaIpcMemHandle_t handle;
    status = FromCuda("offering memory by CUDA IPC", cudaIpcGetMemHandle(&handle, memory));
    if (!status.ok()) return status;
    return std::string(reinterpret_cast<const char*>(&handle), sizeof(handle));
  }
  absl::StatusOr<std::string> ExportEvent(void* event) override {
    absl::Status status = Bind();
    if (!status.ok()) return status;
    cudaIpcEventHandle_t handle;
    status = FromCuda("offering an event by CUDA IPC", cudaIpcGetEventHandle(&handle, static_cast<cudaEvent_t>(event)));
    if (!status.ok()) return status;
    return std::string(reinterpret_cast<const char*>(&handle), sizeof(handle));
  }
  absl::StatusOr<void*> OpenMemory(const std::string& bytes) override {
    cudaIpcMemHandle_t handle;
    absl::Status status = Parse(bytes, &handle, sizeof(handle));
    if (!status.ok()) return status;
    void* memory = nullptr;
    status =
        FromCuda("opening memory by CUDA IPC", cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess));
    if (!status.ok()) return status;
    return memory;
  }
  void CloseMemory(void* memory) override {
    if (Bind().ok()) (void)cudaIpcCloseMemHandle(memory);
  }
  absl::StatusOr<void*> OpenEvent(const std::string& bytes) override {
    cudaIpcEventHandle_t handle;
    absl::Status status = Parse(bytes, &handle, sizeof(handle));
    if (!status.ok()) return status;
    cudaEvent_t event = nullptr;
    status = FromCuda("opening an event by CUDA IPC", cudaIpcOpenEventHandle(&event, handle));
    if (!status.ok()) return status;
    return static_cast<void*>(event);
  }

 private:
  static absl::StatusOr<bool> Done(const char* attempted, cudaError_t error) {
    if (error == cudaErrorNotReady) {
      (void)cudaGetLastError();
      return false;
    }
    const absl::Status status = FromCuda(attempted, error);
    if (!status.ok()) return status;
    return true;
  }
  absl::Status Parse(const std::string& bytes, void* handle, size_t size) {
    if (bytes.size() != size) {
      return absl::InvalidArgumentError(absl::StrCat("a device handle has ", size, " bytes, not ", bytes.size()));
    }
    std::memcpy(handle, bytes.data(), size);
    return Bind();
  }

  const int device_;
  const std::string bus_id_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<DeviceRuntime>> MakeCudaRuntime(int device) {
  const absl::Status checked = cuda::DeviceCheck({.device = device, .purpose = "weight updates"}).status();
  if (!checked.ok()) {
    return absl::UnavailableError(absl::StrCat("no CUDA device: ", std::string(checked.message())));
  }
  char bus_id[32] = "";
  const absl::Status status = FromCuda("asking for the bus id", cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), device));
  if (!status.ok()) return status;
  return std::make_shared<CudaRuntime>(device, bus_id);
}

absl::StatusOr<std::shared_ptr<DeviceRuntime>> MakeCudaRuntimeOfProcess(int process) {
  return MakeCudaRuntime(cuda::DeviceOfProcess(process));
}

}  // namespace lockstep
