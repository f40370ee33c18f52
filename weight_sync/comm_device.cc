#include "weight_sync/comm_device.h"

#include <algorithm>
#include <bit>
#include <random>

#include "absl/strings/str_format.h"
#include "weight_sync/device_wait.h"

namespace lockstep {

StagingPool::~StagingPool() {
  for (const Buffer& buffer : free_) {
    runtime_->FreeEvent(buffer.event);
    runtime_->Free(buffer.memory);
  }
}

absl::StatusOr<StagingPool::Buffer> StagingPool::Take(uint64_t bytes) {
  {
    MutexLock lock(&mutex_);
    // The smallest that is large enough.
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->bytes >= bytes && (best == free_.end() || it->bytes < best->bytes)) best = it;
    }
    if (best != free_.end()) {
      const Buffer buffer = *best;
      free_.erase(best);
      return buffer;
    }
  }
  Buffer buffer;
  const uint64_t least = std::max(bytes, kSmallestStaging);
  buffer.bytes = sizes_ == Sizes::kExact ? least : std::bit_ceil(least);
  absl::StatusOr<void*> memory = runtime_->Allocate(buffer.bytes);
  if (!memory.ok()) return memory.status();
  absl::StatusOr<void*> event = runtime_->MakeEvent();
  if (!event.ok()) {
    runtime_->Free(*memory);
    return event.status();
  }
  buffer.memory = *memory;
  buffer.event = *event;
  MutexLock lock(&mutex_);
  all_.push_back(buffer);
  return buffer;
}

std::optional<StagingPool::Buffer> StagingPool::Find(const void* data, uint64_t bytes) const {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  MutexLock lock(&mutex_);
  for (const Buffer& buffer : all_) {
    const auto memory = reinterpret_cast<uintptr_t>(buffer.memory);
    if (begin >= memory && begin - memory <= buffer.bytes && bytes <= buffer.bytes - (begin - memory)) return buffer;
  }
  return std::nullopt;
}

void StagingPool::Return(const Buffer& buffer) {
  MutexLock lock(&mutex_);
  free_.push_back(buffer);
}

std::string NewIncarnation() {
  std::random_device random;
  return absl::StrFormat("%08x%08x", random(), random());
}

absl::Status CorruptByte(DeviceRuntime& runtime, char* at) {
  if (!runtime.IsDeviceMemory(at)) {
    *at ^= 0x10;
    return absl::OkStatus();
  }
  const absl::StatusOr<void*> stream = runtime.MakeStream();
  if (!stream.ok()) return stream.status();
  const std::atomic<bool> never{false};
  char byte = 0;
  absl::Status status;
  for (const bool back : {false, true}) {
    if (status.ok()) status = back ? runtime.Copy(at, &byte, 1, *stream) : runtime.Copy(&byte, at, 1, *stream);
    if (status.ok()) {
      status = WaitForDevice("a failpoint's copy", absl::InfiniteFuture(), never,
                             [&] { return runtime.StreamDone(*stream); });
    }
    byte ^= 0x10;
  }
  runtime.FreeStream(*stream);
  return status;
}

absl::Status DeviceStuck() {
  return absl::FailedPreconditionError(
      "this process cannot use its GPU in groups any more: an earlier abort or copy has not come back; start the "
      "process again");
}

size_t StagingPool::num_made() const {
  MutexLock lock(&mutex_);
  return all_.size();
}

size_t StagingPool::num_free() const {
  MutexLock lock(&mutex_);
  return free_.size();
}

}  // namespace lockstep
