// Allocations and copies of the emulated runtime.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "engine/base/check.h"
#include "engine/kernels/cuda/emulation/machine.h"

namespace lockstep::emulation {
namespace {

void* NewMemory(size_t bytes) {
  const size_t rounded = (bytes + 255) / 256 * 256;
  void* pointer = std::aligned_alloc(256, rounded);
  if (pointer != nullptr) std::memset(pointer, 0xFF, rounded);
  return pointer;
}

// The entry whose bytes the address is among; end() where there is none.
template <typename Map, typename Bytes>
typename Map::const_iterator Find(const Map& map, const void* address, const Bytes& bytes_of) {
  const auto* const at = static_cast<const char*>(address);
  auto found = map.upper_bound(at);
  if (found == map.begin()) return map.end();
  --found;
  return at < found->first + bytes_of(found->second) ? found : map.end();
}

std::map<const char*, Allocation>::const_iterator FindDevice(const void* address) {
  return Find(TheMachine().device_memory, address, [](const Allocation& a) { return a.bytes; });
}
bool OnDevice(const void* address) { return FindDevice(address) != TheMachine().device_memory.end(); }
bool IsPinned(const void* address) {
  const auto& pinned = TheMachine().pinned_memory;
  return Find(pinned, address, [](size_t bytes) { return bytes; }) != pinned.end();
}

// All of it in one allocation.
bool InsideDevice(const void* address, size_t bytes) {
  const auto found = FindDevice(address);
  return found != TheMachine().device_memory.end() &&
         static_cast<const char*>(address) + bytes <= found->first + found->second.bytes;
}

// As long as it lives the bytes must stay.
class HostUse {
 public:
  HostUse(const void* begin, size_t bytes)
      : at_(TheMachine().host_uses.emplace(static_cast<const char*>(begin), static_cast<const char*>(begin) + bytes)) {}
  HostUse(const HostUse&) = delete;
  ~HostUse() { TheMachine().host_uses.erase(at_); }

 private:
  std::multimap<const char*, const char*>::iterator at_;
};

uint64_t HashOf(const void* data, size_t bytes) {
  uint64_t hash = 0x9E3779B97F4A7C15u;
  const auto* const at = static_cast<const char*>(data);
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, at + i, std::min<size_t>(8, bytes - i));
    hash = (hash ^ word) * 0xFF51AFD7ED558CCDu;
    hash ^= hash >> 32;
  }
  return hash;
}

bool Captures(cudaStream_t stream) { return stream != nullptr && stream->graph != nullptr; }

cudaError_t CopyFromPinned(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  const bool captures = Captures(stream);  // a graph takes what is there when it runs
  const uint64_t before = captures ? 0 : HashOf(from, bytes);
  const auto use = std::make_shared<HostUse>(from, bytes);
  return Submit(stream, [=] {
    LOCKSTEP_CHECK(captures || HashOf(from, bytes) == before, "pinned memory changed before its copy was made");
    std::memcpy(to, from, use == nullptr ? 0 : bytes);
    return cudaSuccess;
  });
}

cudaError_t CopyToPinned(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  if (!Captures(stream) && stream != nullptr) std::memset(to, 0xFF, bytes);
  const auto use = std::make_shared<HostUse>(to, bytes);
  return Submit(stream, [=] {
    std::memcpy(to, from, use == nullptr ? 0 : bytes);
    return cudaSuccess;
  });
}

// Of memory that is not pinned, or on the device alone.
cudaError_t CopyPlain(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  const bool to_device = OnDevice(to), from_device = OnDevice(from);
  if (to_device && from_device) {
    NoteUse(stream, &to, sizeof(to));
    NoteUse(stream, &from, sizeof(from));
    return Submit(stream, [=] {
      std::memmove(to, from, bytes);
      return cudaSuccess;
    });
  }
  if (Captures(stream)) {
    stream->spoiled = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  if (to_device) {
    const auto* const begin = static_cast<const char*>(from);
    return Submit(stream, [to, staged = std::vector<char>(begin, begin + bytes)] {
      std::memcpy(to, staged.data(), staged.size());
      return cudaSuccess;
    });
  }
  if (stream != nullptr) Drain(stream, stream->submitted);
  return Submit(nullptr, [=] {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
  });
}

}  // namespace

void NoteUse(cudaStream_t stream, const void* argument, size_t bytes) {
  if (!Captures(stream)) return;
  const auto lock = Lock();
  for (size_t at = 0; at + sizeof(void*) <= bytes; at += sizeof(void*)) {
    const void* address = nullptr;
    std::memcpy(&address, static_cast<const char*>(argument) + at, sizeof(address));
    const auto found = FindDevice(address);
    if (found != TheMachine().device_memory.end()) stream->graph->memory[found->first] = found->second.number;
  }
}

void SetMemoryLimit(size_t bytes) {
  const auto lock = Lock();
  TheMachine().memory_limit = bytes;
}
size_t MemoryInUse() {
  const auto lock = Lock();
  return TheMachine().memory_in_use;
}

}  // namespace lockstep::emulation

using lockstep::emulation::CopyFromPinned;
using lockstep::emulation::CopyPlain;
using lockstep::emulation::CopyToPinned;
using lockstep::emulation::DrainAll;
using lockstep::emulation::InsideDevice;
using lockstep::emulation::IsPinned;
using lockstep::emulation::Lock;
using lockstep::emulation::NewMemory;
using lockstep::emulation::NoteUse;
using lockstep::emulation::OnDevice;
using lockstep::emulation::SpoilsCapture;
using lockstep::emulation::Submit;
using lockstep::emulation::TheDevices;
using lockstep::emulation::TheMachine;

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  const auto lock = Lock();
  auto& m = TheMachine();
  *pointer = nullptr;
  if (m.lost != cudaSuccess) return m.lost;
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  if (bytes == 0) return cudaSuccess;
  const size_t used = m.memory_in_use + TheDevices().bytes_of_others;
  if (bytes > m.memory_limit - std::min(m.memory_limit, used)) return cudaErrorMemoryAllocation;
  *pointer = NewMemory(bytes);
  if (*pointer == nullptr) return cudaErrorMemoryAllocation;
  m.device_memory[static_cast<char*>(*pointer)] = {bytes, ++m.allocations_made};
  m.memory_in_use += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  const auto lock = Lock();
  auto& m = TheMachine();
  if (pointer == nullptr) return cudaSuccess;
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  DrainAll();
  const auto found = m.device_memory.find(static_cast<char*>(pointer));
  if (found == m.device_memory.end()) return cudaErrorInvalidValue;
  m.memory_in_use -= found->second.bytes;
  std::memset(pointer, 0xFF, found->second.bytes);
  m.device_memory.erase(found);
  std::free(pointer);
  return m.lost;
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  const auto lock = Lock();
  auto& m = TheMachine();
  *pointer = nullptr;
  if (m.lost != cudaSuccess) return m.lost;
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  if (bytes == 0) return cudaSuccess;
  *pointer = NewMemory(bytes);
  if (*pointer == nullptr) return cudaErrorMemoryAllocation;
  m.pinned_memory[static_cast<char*>(*pointer)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* pointer) {
  const auto lock = Lock();
  auto& m = TheMachine();
  if (pointer == nullptr) return cudaSuccess;
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  const auto found = m.pinned_memory.find(static_cast<char*>(pointer));
  if (found == m.pinned_memory.end()) return cudaErrorInvalidValue;
  for (const auto& [begin, end] : m.host_uses) {
    LOCKSTEP_CHECK(end <= found->first || begin >= found->first + found->second || m.lost != cudaSuccess,
                   "pinned memory is freed while a copy or a graph uses it");
  }
  m.pinned_memory.erase(found);
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const auto lock = Lock();
  const auto& m = TheMachine();
  *total_bytes = m.memory_limit;
  *free_bytes = m.memory_limit - std::min(m.memory_limit, m.memory_in_use + TheDevices().bytes_of_others);
  return m.lost != cudaSuccess ? m.lost : TheDevices().mem_get_info;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const auto lock = Lock();
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const auto lock = Lock();
  if (TheMachine().lost != cudaSuccess) return TheMachine().lost;
  if (bytes == 0) return cudaSuccess;
  const bool to_device = OnDevice(to), from_device = OnDevice(from);
  if ((to_device && !InsideDevice(to, bytes)) || (from_device && !InsideDevice(from, bytes))) {
    return cudaErrorInvalidValue;
  }
  const bool wants_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool wants_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind != cudaMemcpyDefault && (to_device != wants_to || from_device != wants_from)) return cudaErrorInvalidValue;
  if (to_device && !from_device && IsPinned(from)) {
    NoteUse(stream, &to, sizeof(to));
    return CopyFromPinned(to, from, bytes, stream);
  }
  if (from_device && !to_device && IsPinned(to)) {
    NoteUse(stream, &from, sizeof(from));
    return CopyToPinned(to, from, bytes, stream);
  }
  return CopyPlain(to, from, bytes, stream);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const auto lock = Lock();
  if (bytes == 0) return cudaSuccess;
  if (!InsideDevice(to, bytes)) return cudaErrorInvalidValue;
  NoteUse(stream, &to, sizeof(to));
  return Submit(stream, [=] {
    std::memset(to, value, bytes);
    return cudaSuccess;
  });
}
