// The part of the CUDA runtime that moves weights and gradients: memory, copies on a stream, and what one process hands
// to another on the same machine. An interface, so that the waiting, the deadlines and the aborts above it are tested
// over an implementation among threads and processes (device_emulation.h), and so that all of it builds without a
// toolkit.
//
// One object is one device. Calls may come from any thread. No call waits for work on the device but Free; whoever has
// to wait asks StreamDone or EventDone until a deadline of its own. A failed call's status is one line of
// engine/cuda/errors.
#ifndef LOCKSTEP_WEIGHT_SYNC_DEVICE_RUNTIME_H_
#define LOCKSTEP_WEIGHT_SYNC_DEVICE_RUNTIME_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

class DeviceRuntime {
 public:
  virtual ~DeviceRuntime() = default;

  // The calling thread's device from here on: for libraries that take the current one.
  virtual absl::Status Bind() = 0;
  virtual std::string bus_id() const = 0;  // "0000:65:00.0"

  virtual absl::StatusOr<void*> Allocate(uint64_t bytes) = 0;
  // Waits for everything that runs on the device.
  virtual void Free(void* memory) = 0;
  // Of a device; false for memory of the host.
  virtual bool IsDeviceMemory(const void* memory) const = 0;

  virtual absl::StatusOr<void*> MakeStream() = 0;
  virtual void FreeStream(void* stream) = 0;
  // Enqueues a copy, either side on the device or on the host. With plain memory of the host it may wait for what the
  // stream holds already; so it is enqueued on an idle stream only.
  virtual absl::Status Copy(void* to, const void* from, uint64_t bytes, void* stream) = 0;
  // Enqueues engine/kernels/cuda/digest.h: `digests` [DigestBlocks(bytes)], device memory as well.
  virtual absl::Status DigestsOfBlocks(const void* data, uint64_t bytes, uint64_t* digests, void* stream) = 0;
  // Whether all that was enqueued is done.
  virtual absl::StatusOr<bool> StreamDone(void* stream) = 0;

  // Events that another process can ask.
  virtual absl::StatusOr<void*> MakeEvent() = 0;
  virtual void FreeEvent(void* event) = 0;
  virtual absl::Status Record(void* event, void* stream) = 0;
  virtual absl::StatusOr<bool> EventDone(void* event) = 0;

  // Handles are bytes to be sent. `memory` is from Allocate; it and the event outlive every use of their handles.
  virtual absl::StatusOr<std::string> ExportMemory(void* memory) = 0;
  virtual absl::StatusOr<std::string> ExportEvent(void* event) = 0;
  virtual absl::StatusOr<void*> OpenMemory(const std::string& handle) = 0;
  virtual void CloseMemory(void* memory) = 0;
  virtual absl::StatusOr<void*> OpenEvent(const std::string& handle) = 0;  // ended by FreeEvent
};

// The GPU of this number. UNAVAILABLE in one line where this build has no CUDA, or the machine no driver or device.
absl::StatusOr<std::shared_ptr<DeviceRuntime>> MakeCudaRuntime(int device);
// That of a run's process of this number: processes take the visible GPUs in turn, as engine/cuda's DeviceOfProcess.
absl::StatusOr<std::shared_ptr<DeviceRuntime>> MakeCudaRuntimeOfProcess(int process);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_DEVICE_RUNTIME_H_
