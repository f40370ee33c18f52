#include "weight_sync/comm_device.h"

#include <algorithm>
#include <bit>

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
  buffer.bytes = std::bit_ceil(std::max(bytes, kSmallestStaging));
  absl::StatusOr<void*> memory = runtime_->Allocate(buffer.bytes);
  if (!memory.ok()) return memory.status();
  absl::StatusOr<void*> event = runtime_->MakeEvent();
  if (!event.ok()) {
    runtime_->Free(*memory);
    return event.status();
  }
  buffer.memory = *memory;
  buffer.event = *event;
  return buffer;
}

void StagingPool::Return(const Buffer& buffer) {
  MutexLock lock(&mutex_);
  free_.push_back(buffer);
}

absl::Status DeviceStuck() {
  return absl::FailedPreconditionError(
      "this process cannot use its GPU in groups any more: an earlier abort or copy has not come back; start the "
      "process again");
}

size_t StagingPool::num_free() const {
  MutexLock lock(&mutex_);
  return free_.size();
}

}  // namespace lockstep
