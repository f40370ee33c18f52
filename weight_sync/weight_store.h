// WeightStore: the committed weights of a process. Readers hold a counted, immutable version; one pointer says which is
// current. Thread safe.
#ifndef LOCKSTEP_WEIGHT_SYNC_WEIGHT_STORE_H_
#define LOCKSTEP_WEIGHT_SYNC_WEIGHT_STORE_H_

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "engine/base/mutex.h"
#include "engine/model/weight_set.h"

namespace lockstep {

class WeightStore {
 public:
  // Null until the first Publish.
  std::shared_ptr<const WeightSet> current() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Makes `weights` current. Refused (FAILED_PRECONDITION) unless (epoch, version) is greater than the current one's.
  absl::Status Publish(std::shared_ptr<const WeightSet> weights) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable Mutex mutex_;
  std::shared_ptr<const WeightSet> current_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_WEIGHT_STORE_H_
