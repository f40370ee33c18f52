#include "engine/kernels/cuda/emulation/runtime.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "engine/base/check.h"
#include "engine/kernels/cuda/emulation/machine.h"

// AddressSanitizer's; null without it.
extern "C" {
[[gnu::weak]] void __asan_poison_memory_region(const volatile void* from, size_t bytes);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* from, size_t bytes);
}

namespace lockstep::emulation {
namespace {

constexpr size_t kPage = 4096;

thread_local int current_device = 0;

void* AllocatePages(size_t bytes, size_t* mapped) {
  const size_t rounded = (bytes + 255) / 256 * 256;
  *mapped = (bytes + kPage - 1) / kPage * kPage;
  void* const pointer = std::aligned_alloc(kPage, *mapped);
  if (pointer == nullptr) return nullptr;
  std::memset(pointer, 0xFF, *mapped);
  if (__asan_poison_memory_region != nullptr) {
    __asan_poison_memory_region(static_cast<char*>(pointer) + rounded, *mapped - rounded);
  }
  return pointer;
}

void FreePages(void* pointer, const Allocation& allocation) {
  if (__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(pointer, allocation.mapped);
  if (allocation.fd >= 0) {
    // The heap gets plain memory back; other processes keep what they have opened.
    void* const plain =
        mmap(pointer, allocation.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    LOCKSTEP_CHECK(plain == pointer, "exported memory cannot be given back");
    close(allocation.fd);
  }
  std::free(pointer);
}

}  // namespace

int CurrentDevice() { return current_device; }

void SetMemoryLimit(size_t bytes) {
  const Guard guard(TheMachine().mutex);
  TheMachine().memory_limit = bytes;
}
size_t MemoryInUse() {
  const Guard guard(TheMachine().mutex);
  return TheMachine().InUse(current_device);
}

Devices& TheDevices() {
  static auto* const devices = new Devices;
  return *devices;
}

}  // namespace lockstep::emulation

using namespace lockstep::emulation;

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  auto& m = TheMachine();
  const Guard guard(m.mutex);
  *pointer = nullptr;
  if (m.lost != cudaSuccess) return m.lost;
  if (m.Capturing()) return cudaErrorStreamCaptureUnsupported;
  if (bytes == 0) return cudaSuccess;
  const size_t used = m.InUse(CurrentDevice()) + TheDevices().bytes_of_others;
  if (bytes > m.memory_limit - std::min(m.memory_limit, used)) return cudaErrorMemoryAllocation;
  Allocation allocation{.bytes = bytes, .device = CurrentDevice()};
  *pointer = AllocatePages(bytes, &allocation.mapped);
  if (*pointer == nullptr) return cudaErrorMemoryAllocation;
  m.allocations[*pointer] = allocation;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  auto& m = TheMachine();
  if (pointer == nullptr) return cudaSuccess;
  {
    const Guard guard(m.mutex);
    if (m.Capturing()) return cudaErrorStreamCaptureUnsupported;
  }
  DrainAll();
  const Guard guard(m.mutex);
  const auto found = m.allocations.find(pointer);
  if (found == m.allocations.end()) return cudaErrorInvalidValue;
  FreePages(pointer, found->second);
  m.allocations.erase(found);
  return m.lost;
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  const Guard guard(TheMachine().mutex);
  size_t mapped = 0;
  *pointer = bytes == 0 ? nullptr : AllocatePages(bytes, &mapped);
  if (*pointer == nullptr) return bytes > 0 ? cudaErrorMemoryAllocation : cudaSuccess;
  TheMachine().pinned[*pointer] = {.bytes = bytes, .mapped = mapped};
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  DrainAll();
  auto& m = TheMachine();
  const Guard guard(m.mutex);
  const auto found = m.pinned.find(pointer);
  if (found == m.pinned.end()) return cudaErrorInvalidValue;
  FreePages(pointer, found->second);
  m.pinned.erase(found);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const auto& m = TheMachine();
  const Guard guard(TheMachine().mutex);
  *total_bytes = m.memory_limit;
  *free_bytes = m.memory_limit - std::min(m.memory_limit, m.InUse(CurrentDevice()) + TheDevices().bytes_of_others);
  return m.lost != cudaSuccess ? m.lost : TheDevices().mem_get_info;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  {
    const Guard guard(TheMachine().mutex);
    if (TheMachine().Capturing()) return cudaErrorStreamCaptureUnsupported;
  }
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

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const auto& m = TheMachine();
  const Guard guard(TheMachine().mutex);
  *attributes = {};
  const auto holds = [&](const auto& map, auto bytes_of) {
    auto after = map.upper_bound(const_cast<void*>(pointer));
    if (after == map.begin()) return map.end();
    --after;
    const auto offset = static_cast<size_t>(static_cast<const char*>(pointer) - static_cast<const char*>(after->first));
    return offset < bytes_of(after->second) ? after : map.end();
  };
  const auto bytes_of = [](const Allocation& allocation) { return allocation.bytes; };
  if (const auto own = holds(m.allocations, bytes_of); own != m.allocations.end()) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->device = own->second.device;
    attributes->devicePointer = const_cast<void*>(pointer);
  } else if (holds(m.opened, [](size_t bytes) { return bytes; }) != m.opened.end()) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->device = CurrentDevice();
    attributes->devicePointer = const_cast<void*>(pointer);
  } else if (holds(m.pinned, bytes_of) != m.pinned.end()) {
    attributes->type = cudaMemoryTypeHost;
    attributes->hostPointer = const_cast<void*>(pointer);
  }
  return m.lost;
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
cudaError_t cudaDeviceGetPCIBusId(char* bus_id, int length, int device) {
  const auto& devices = TheDevices();
  if (device < 0 || device >= devices.count) return cudaErrorInvalidDevice;
  std::snprintf(bus_id, static_cast<size_t>(length), "0000:%02x:00.0", devices.first_bus + device);
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  const auto& devices = TheDevices();
  if (device < 0 || device >= devices.count) return cudaErrorInvalidDevice;
  if (devices.set_device == cudaSuccess) current_device = device;
  return devices.set_device;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return TheDevices().get_device;
}
cudaError_t cudaDeviceSynchronize() {
  DrainAll();
  return Lost();
}
cudaError_t cudaGetLastError() { return Lost(); }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "the emulated runtime refused the call";
}
