#include "engine/kernels/cuda/emulation/runtime.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "engine/base/check.h"

struct CUgraph_st {
  std::vector<lockstep::emulation::Work> work;
};
struct CUgraphExec_st {
  std::vector<lockstep::emulation::Work> work;
};
struct CUstream_st {
  std::deque<lockstep::emulation::Work> queue;
  uint64_t submitted = 0, done = 0;
  CUgraph_st* capture = nullptr;
};
struct CUevent_st {
  CUstream_st* stream = nullptr;  // null: never recorded, or on the null stream: it has happened
  uint64_t after = 0;             // it happens when the stream has done so many
  std::chrono::steady_clock::time_point recorded = {};
};

namespace lockstep::emulation {
namespace {

struct Machine {
  size_t memory_limit = std::numeric_limits<size_t>::max();
  size_t memory_in_use = 0;
  std::map<void*, size_t> allocations;
  std::set<CUstream_st*> streams;
  int until_failure = -1;  // -1: none is to come
  cudaError_t failure = cudaSuccess;
  cudaError_t lost = cudaSuccess;  // what every call says once the device is lost
  int device = 0;                  // the current one; all have the same memory

  bool Capturing() const {
    for (const CUstream_st* stream : streams) {
      if (stream->capture != nullptr) return true;
    }
    return false;
  }
};

Machine& TheMachine() {
  static auto* const machine = new Machine;
  return *machine;
}

cudaError_t RunWork(const Work& work) {
  Machine& m = TheMachine();
  if (m.lost != cudaSuccess) return m.lost;
  if (m.until_failure >= 0 && m.until_failure-- == 0) return m.lost = m.failure;
  const cudaError_t error = work();
  if (error != cudaSuccess) m.lost = error;
  return error;
}

// Runs the stream's work up to number `until`.
void Drain(CUstream_st* stream, uint64_t until) {
  while (stream->done < until) {
    LOCKSTEP_CHECK(!stream->queue.empty(), "a stream waits for itself");
    const Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    static_cast<void>(RunWork(work));
    ++stream->done;
  }
}

void DrainAll() {
  for (CUstream_st* stream : TheMachine().streams) Drain(stream, stream->submitted);
}

cudaError_t DrainEvent(CUevent_st* event) {
  if (event->stream != nullptr) Drain(event->stream, event->after);
  return TheMachine().lost;
}

void* Allocate(size_t bytes) {
  const size_t rounded = (bytes + 255) / 256 * 256;
  void* pointer = std::aligned_alloc(256, rounded);
  if (pointer != nullptr) std::memset(pointer, 0xFF, rounded);
  return pointer;
}

}  // namespace

cudaError_t Submit(cudaStream_t stream, Work work) {
  Machine& m = TheMachine();
  if (m.lost != cudaSuccess) return m.lost;
  if (stream == nullptr) return RunWork(work);
  if (stream->capture != nullptr) {
    stream->capture->work.push_back(std::move(work));
    return cudaSuccess;
  }
  stream->queue.push_back(std::move(work));
  ++stream->submitted;
  return cudaSuccess;
}

void SetMemoryLimit(size_t bytes) { TheMachine().memory_limit = bytes; }
size_t MemoryInUse() { return TheMachine().memory_in_use; }

void FailWork(int skip, cudaError_t error) {
  Machine& m = TheMachine();
  m.lost = cudaSuccess;
  m.failure = error;
  m.until_failure = error == cudaSuccess ? -1 : skip;
}

Devices& TheDevices() {
  static auto* const devices = new Devices;
  return *devices;
}

size_t PendingWork() {
  size_t pending = 0;
  for (const CUstream_st* stream : TheMachine().streams) pending += stream->queue.size();
  return pending;
}

}  // namespace lockstep::emulation

using lockstep::emulation::Allocate;
using lockstep::emulation::Drain;
using lockstep::emulation::DrainAll;
using lockstep::emulation::DrainEvent;
using lockstep::emulation::Submit;
using lockstep::emulation::TheDevices;
using lockstep::emulation::TheMachine;

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  auto& m = TheMachine();
  *pointer = nullptr;
  if (m.lost != cudaSuccess) return m.lost;
  if (m.Capturing()) return cudaErrorStreamCaptureUnsupported;
  if (bytes == 0) return cudaSuccess;
  const size_t used = m.memory_in_use + TheDevices().bytes_of_others;
  if (bytes > m.memory_limit - std::min(m.memory_limit, used)) return cudaErrorMemoryAllocation;
  *pointer = Allocate(bytes);
  if (*pointer == nullptr) return cudaErrorMemoryAllocation;
  m.allocations[*pointer] = bytes;
  m.memory_in_use += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  auto& m = TheMachine();
  if (pointer == nullptr) return cudaSuccess;
  if (m.Capturing()) return cudaErrorStreamCaptureUnsupported;
  DrainAll();
  const auto found = m.allocations.find(pointer);
  if (found == m.allocations.end()) return cudaErrorInvalidValue;
  m.memory_in_use -= found->second;
  m.allocations.erase(found);
  std::free(pointer);
  return m.lost;
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  *pointer = bytes == 0 ? nullptr : Allocate(bytes);
  return *pointer == nullptr && bytes > 0 ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFreeHost(void* pointer) {
  DrainAll();
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const auto& m = TheMachine();
  *total_bytes = m.memory_limit;
  *free_bytes = m.memory_limit - std::min(m.memory_limit, m.memory_in_use + TheDevices().bytes_of_others);
  return m.lost != cudaSuccess ? m.lost : TheDevices().mem_get_info;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (TheMachine().Capturing()) return cudaErrorStreamCaptureUnsupported;
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  return Submit(stream, [=] {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
  return Submit(stream, [=] {
    for (size_t row = 0; row < height; ++row) {
      std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    }
    return cudaSuccess;
  });
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  return Submit(stream, [=] {
    std::memset(to, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = TheDevices().driver_version;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = TheDevices().runtime_version;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  const auto& devices = TheDevices();
  *count = devices.get_device_count == cudaSuccess ? devices.count : 0;
  return devices.get_device_count;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const auto& devices = TheDevices();
  if (device < 0 || device >= devices.count) return cudaErrorInvalidDevice;
  if (devices.get_device_properties != cudaSuccess) return devices.get_device_properties;
  *properties = {};
  std::strncpy(properties->name, devices.name, sizeof(properties->name) - 1);
  properties->totalGlobalMem = TheMachine().memory_limit;
  properties->major = devices.major;
  properties->minor = devices.minor;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  if (device < 0 || device >= TheDevices().count) return cudaErrorInvalidDevice;
  *value = TheDevices().major;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  const auto& devices = TheDevices();
  if (device < 0 || device >= devices.count) return cudaErrorInvalidDevice;
  if (devices.set_device == cudaSuccess) TheMachine().device = device;
  return devices.set_device;
}
cudaError_t cudaGetDevice(int* device) {
  *device = TheMachine().device;
  return TheDevices().get_device;
}
cudaError_t cudaDeviceSynchronize() {
  DrainAll();
  return TheMachine().lost;
}
cudaError_t cudaGetLastError() { return TheMachine().lost; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError:
      return "cudaErrorInitializationError";
    case cudaErrorStubLibrary:
      return "cudaErrorStubLibrary";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorCallRequiresNewerDriver:
      return "cudaErrorCallRequiresNewerDriver";
    case cudaErrorDevicesUnavailable:
      return "cudaErrorDevicesUnavailable";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    case cudaErrorECCUncorrectable:
      return "cudaErrorECCUncorrectable";
    case cudaErrorNvlinkUncorrectable:
      return "cudaErrorNvlinkUncorrectable";
    case cudaErrorJitCompilerNotFound:
      return "cudaErrorJitCompilerNotFound";
    case cudaErrorUnsupportedPtxVersion:
      return "cudaErrorUnsupportedPtxVersion";
    case cudaErrorContained:
      return "cudaErrorContained";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchOutOfResources:
      return "cudaErrorLaunchOutOfResources";
    case cudaErrorLaunchTimeout:
      return "cudaErrorLaunchTimeout";
    case cudaErrorContextIsDestroyed:
      return "cudaErrorContextIsDestroyed";
    case cudaErrorAssert:
      return "cudaErrorAssert";
    case cudaErrorHardwareStackError:
      return "cudaErrorHardwareStackError";
    case cudaErrorIllegalInstruction:
      return "cudaErrorIllegalInstruction";
    case cudaErrorMisalignedAddress:
      return "cudaErrorMisalignedAddress";
    case cudaErrorInvalidAddressSpace:
      return "cudaErrorInvalidAddressSpace";
    case cudaErrorInvalidPc:
      return "cudaErrorInvalidPc";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorTensorMemoryLeak:
      return "cudaErrorTensorMemoryLeak";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorSystemNotReady:
      return "cudaErrorSystemNotReady";
    case cudaErrorSystemDriverMismatch:
      return "cudaErrorSystemDriverMismatch";
    case cudaErrorCompatNotSupportedOnDevice:
      return "cudaErrorCompatNotSupportedOnDevice";
    case cudaErrorMpsClientTerminated:
      return "cudaErrorMpsClientTerminated";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorExternalDevice:
      return "cudaErrorExternalDevice";
    case cudaErrorUnknown:
      return "cudaErrorUnknown";
  }
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "the emulated runtime refused the call";
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  TheMachine().streams.insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Drain(stream, stream->submitted);
  TheMachine().streams.erase(stream);
  delete stream->capture;
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream == nullptr) return TheMachine().lost;
  if (stream->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  Drain(stream, stream->submitted);
  return TheMachine().lost;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (stream != nullptr && stream->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  const CUevent_st at = *event;  // a later record does not move what was waited for
  return Submit(stream, [at] {
    CUevent_st copy = at;
    return DrainEvent(&copy);
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (stream != nullptr && stream->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  *event = {stream, stream == nullptr ? 0 : stream->submitted, std::chrono::steady_clock::now()};
  return TheMachine().lost;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return DrainEvent(event); }
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (event->stream == nullptr || event->stream->done >= event->after) return TheMachine().lost;
  Drain(event->stream, event->stream->done + 1);
  if (TheMachine().lost != cudaSuccess) return TheMachine().lost;
  return event->stream->done >= event->after ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (begin->recorded.time_since_epoch().count() == 0 || end->recorded.time_since_epoch().count() == 0) {
    return cudaErrorInvalidValue;
  }
  if (DrainEvent(begin) == cudaSuccess && DrainEvent(end) == cudaSuccess) {
    *milliseconds = std::max(1e-3f, std::chrono::duration<float, std::milli>(end->recorded - begin->recorded).count());
  }
  return TheMachine().lost;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || stream->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  stream->capture = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream == nullptr || stream->capture == nullptr) return cudaErrorInvalidValue;
  *graph = std::exchange(stream->capture, nullptr);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  // The graph's work is copied: on a device too it may run after its executable is destroyed.
  return Submit(stream, [work = exec->work] {
    for (const auto& one : work) {
      if (const cudaError_t error = one(); error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
