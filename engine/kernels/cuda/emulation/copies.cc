// Copies of the emulated runtime.
#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/kernels/cuda/emulation/machine.h"

namespace lockstep::emulation {
namespace {

bool OnDevice(const void* address) { return FindDevice(address).begin != nullptr; }

// All of it in one allocation.
bool InsideDevice(const void* address, size_t bytes) {
  const DeviceRange range = FindDevice(address);
  return range.begin != nullptr && static_cast<const char*>(address) + bytes <= range.begin + range.bytes;
}

// As long as it lives the bytes must stay.
class HostUse {
 public:
  HostUse(const void* begin, size_t bytes) {
    const Guard guard(TheMachine().mutex);
    at_ = TheMachine().host_uses.emplace(static_cast<const char*>(begin), static_cast<const char*>(begin) + bytes);
  }
  HostUse(const HostUse&) = delete;
  ~HostUse() {
    const Guard guard(TheMachine().mutex);
    TheMachine().host_uses.erase(at_);
  }

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

uint64_t Submitted(cudaStream_t stream) {
  const Guard guard(TheMachine().mutex);
  return stream->queue->submitted;
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
  if (stream != nullptr) Drain(*stream->queue, Submitted(stream));
  return Submit(nullptr, [=] {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
  });
}

}  // namespace

void NoteUse(cudaStream_t stream, const void* argument, size_t bytes) {
  if (!Captures(stream)) return;
  const Guard guard(TheMachine().mutex);
  for (size_t at = 0; at + sizeof(void*) <= bytes; at += sizeof(void*)) {
    const void* address = nullptr;
    std::memcpy(&address, static_cast<const char*>(argument) + at, sizeof(address));
    const DeviceRange range = FindDevice(address);
    if (range.number != 0) stream->graph->memory[range.begin] = range.number;
  }
}

}  // namespace lockstep::emulation

using namespace lockstep::emulation;

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (const cudaError_t lost = Lost(); lost != cudaSuccess) return lost;
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
  if (bytes == 0) return cudaSuccess;
  if (const cudaError_t error = CheckStream(stream); error != cudaSuccess) return error;
  if (!InsideDevice(to, bytes)) return cudaErrorInvalidValue;
  NoteUse(stream, &to, sizeof(to));
  return Submit(stream, [=] {
    std::memset(to, value, bytes);
    return cudaSuccess;
  });
}
