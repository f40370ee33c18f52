// What a process has opened of another's device memory and events. To open a handle takes longer than to copy a bucket,
// so it stays open from update to update.
#ifndef LOCKSTEP_WEIGHT_SYNC_OPENED_HANDLES_H_
#define LOCKSTEP_WEIGHT_SYNC_OPENED_HANDLES_H_

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "weight_sync/device_runtime.h"

namespace lockstep {

enum class HandleKind : uint8_t { kMemory, kEvent };

// Closed with the object, unless the device hangs: then it is left as it is.
class OpenedHandle {
 public:
  OpenedHandle(DeviceRuntime* runtime, const std::atomic<bool>* stuck, HandleKind kind, void* address)
      : runtime_(runtime), stuck_(stuck), kind_(kind), address(address) {}
  ~OpenedHandle() {
    if (*stuck_) return;
    if (kind_ == HandleKind::kMemory) {
      runtime_->CloseMemory(address);
    } else {
      runtime_->FreeEvent(address);
    }
  }
  OpenedHandle(const OpenedHandle&) = delete;

 private:
  DeviceRuntime* const runtime_;
  const std::atomic<bool>* const stuck_;
  const HandleKind kind_;

 public:
  void* const address;
};

// By owner (a process, by its own name for itself: handles of one that was started again may have the same bytes) and
// handle.
using OpenedSet = std::map<std::pair<std::string, std::string>, std::shared_ptr<OpenedHandle>>;

// Thread safe.
class OpenedHandles {
 public:
  OpenedHandles(DeviceRuntime* runtime, const std::atomic<bool>* stuck) : runtime_(runtime), stuck_(stuck) {}

  // From `used`, where it goes, or the last update's, or opened now.
  absl::StatusOr<void*> Open(HandleKind kind, const std::string& owner, const std::string& handle, OpenedSet* used)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    std::shared_ptr<OpenedHandle>& place = (*used)[{owner, handle}];
    if (place == nullptr) {
      MutexLock lock(&mutex_);
      const auto found = last_.find({owner, handle});
      if (found != last_.end()) place = found->second;
    }
    if (place == nullptr) {
      absl::StatusOr<void*> address =
          kind == HandleKind::kMemory ? runtime_->OpenMemory(handle) : runtime_->OpenEvent(handle);
      if (!address.ok()) {
        used->erase({owner, handle});
        return address.status();
      }
      place = std::make_shared<OpenedHandle>(runtime_, stuck_, kind, *address);
      ++num_opened_;
    }
    return place->address;
  }
  // What the update used stays open; what it did not, of an owner that is gone or of memory that grew, is closed once
  // no transport uses it.
  size_t num_opened() const { return num_opened_; }  // since the beginning
  void Keep(OpenedSet used) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (used.empty()) return;
    MutexLock lock(&mutex_);
    std::swap(used, last_);
  }

 private:
  DeviceRuntime* const runtime_;
  const std::atomic<bool>* const stuck_;
  std::atomic<size_t> num_opened_{0};
  Mutex mutex_;
  OpenedSet last_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_OPENED_HANDLES_H_
