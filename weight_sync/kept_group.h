// A group that is used again by the next update. To form one takes seconds (NCCL) or round trips (IPC), and from update
// to update its members are mostly the same.
//
// A process keeps at most one group of a kind: the last one, if nothing failed in it. Its name is that under which it
// was formed, which no other group ever has. So a member that says it keeps the group of this name is the same process
// that joined it, and not another one at its address. A kept group is used when sender and all members have said so
// before anybody enters it (docs/weight_sync.md); else it ends, at the next Join at the latest.
#ifndef LOCKSTEP_WEIGHT_SYNC_KEPT_GROUP_H_
#define LOCKSTEP_WEIGHT_SYNC_KEPT_GROUP_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "engine/base/mutex.h"
#include "weight_sync/transport.h"

namespace lockstep {

// Ends with the object.
class KeptGroup {
 public:
  KeptGroup(std::string name, int rank, int size) : name(std::move(name)), rank(rank), size(size) {}
  virtual ~KeptGroup() = default;
  // False: an error has come since it was used.
  virtual bool Usable() = 0;

  const std::string name;
  const int rank;
  const int size;
};

// Thread safe. What is replaced or not wanted ends outside of the lock.
class KeptSlot {
 public:
  void Put(std::unique_ptr<KeptGroup> group) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    std::swap(group, group_);
  }
  // The one that `group` asks for; null where it asks for none, or for another. Nothing stays in the slot.
  std::unique_ptr<KeptGroup> Take(const TransportGroup& group) ABSL_LOCKS_EXCLUDED(mutex_) {
    std::unique_ptr<KeptGroup> kept;
    {
      MutexLock lock(&mutex_);
      std::swap(kept, group_);
    }
    const bool wanted = kept != nullptr && !group.kept.empty() && kept->name == group.kept &&
                        kept->rank == group.rank && kept->size == group.size;
    return wanted ? std::move(kept) : nullptr;
  }
  // Of the group that is kept and usable, else "".
  std::string Name() ABSL_LOCKS_EXCLUDED(mutex_) {
    std::unique_ptr<KeptGroup> broken;
    MutexLock lock(&mutex_);
    if (group_ != nullptr && !group_->Usable()) std::swap(broken, group_);
    return group_ == nullptr ? "" : group_->name;
  }

 private:
  Mutex mutex_;
  std::unique_ptr<KeptGroup> group_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_KEPT_GROUP_H_
