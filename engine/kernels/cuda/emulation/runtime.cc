// Memory and devices of the emulated runtime.
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

size_t BytesOf(const Allocation& allocation) { return allocation.bytes; }
size_t BytesOf(size_t bytes) { return bytes; }

// The entry whose bytes the address is among; end() where there is none.
template <typename Map>
typename Map::const_iterator FindIn(const Map& map, const void* address) {
  auto found = map.upper_bound(const_cast<void*>(address));
  if (found == map.begin()) return map.end();
  --found;
  const auto offset = static_cast<size_t>(static_cast<const char*>(address) - static_cast<const char*>(found->first));
  return offset < BytesOf(found->second) ? found : map.end();
}

}  // namespace

int CurrentDevice() { return current_device; }

DeviceRange FindDevice(const void* address) {
  const Guard guard(TheMachine().mutex);
  const Machine& m = TheMachine();
  if (const auto own = FindIn(m.allocations, address); own != m.allocations.end()) {
    return {static_cast<const char*>(own->first), own->second.bytes, own->second.number, own->second.device};
  }
  if (const auto other = FindIn(m.opened, address); other != m.opened.end()) {
    return {static_cast<const char*>(other->first), other->second, 0, current_device};
  }
  return {};
}
bool IsPinned(const void* address) {
  const Guard guard(TheMachine().mutex);
  return FindIn(TheMachine().pinned, address) != TheMachine().pinned.end();
}

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
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  if (bytes == 0) return cudaSuccess;
  const size_t used = m.InUse(CurrentDevice()) + TheDevices().bytes_of_others;
  if (bytes > m.memory_limit - std::min(m.memory_limit, used)) return cudaErrorMemoryAllocation;
  Allocation allocation{.bytes = bytes, .number = ++m.allocations_made, .device = CurrentDevice()};
  *pointer = AllocatePages(bytes, &allocation.mapped);
  if (*pointer == nullptr) return cudaErrorMemoryAllocation;
  m.allocations[*pointer] = allocation;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  auto& m = TheMachine();
  if (pointer == nullptr) return cudaSuccess;
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  DrainAll();
  const Guard guard(m.mutex);
  const auto found = m.allocations.find(pointer);
  if (found == m.allocations.end()) return cudaErrorInvalidValue;
  std::memset(pointer, 0xFF, found->second.bytes);
  FreePages(pointer, found->second);
  m.allocations.erase(found);
  return m.lost;
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  auto& m = TheMachine();
  const Guard guard(m.mutex);
  *pointer = nullptr;
  if (m.lost != cudaSuccess) return m.lost;
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  if (bytes == 0) return cudaSuccess;
  Allocation allocation{.bytes = bytes};
  *pointer = AllocatePages(bytes, &allocation.mapped);
  if (*pointer == nullptr) return cudaErrorMemoryAllocation;
  m.pinned[*pointer] = allocation;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  auto& m = TheMachine();
  const Guard guard(m.mutex);
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  const auto found = m.pinned.find(pointer);
  if (found == m.pinned.end()) return cudaErrorInvalidValue;
  const auto* const freed = static_cast<const char*>(pointer);
  for (const auto& [begin, end] : m.host_uses) {
    LOCKSTEP_CHECK(end <= freed || begin >= freed + found->second.bytes || m.lost != cudaSuccess,
                   "pinned memory is freed while a copy or a graph uses it");
  }
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

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const Guard guard(TheMachine().mutex);
  *attributes = {};
  if (const DeviceRange range = FindDevice(pointer); range.begin != nullptr) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->device = range.device;
    attributes->devicePointer = const_cast<void*>(pointer);
  } else if (IsPinned(pointer)) {
    attributes->type = cudaMemoryTypeHost;
    attributes->hostPointer = const_cast<void*>(pointer);
  }
  return TheMachine().lost;
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
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  if (device < 0 || device >= TheDevices().count) return cudaErrorInvalidDevice;
  *value = TheDevices().major;
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
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  DrainAll();
  return Lost();
}
cudaError_t cudaGetLastError() { return Lost(); }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "the emulated runtime refused the call";
}
