#include "weight_sync/weight_store.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"

namespace lockstep {

std::shared_ptr<const WeightSet> WeightStore::current() const {
  MutexLock lock(&mutex_);
  return current_;
}

absl::Status WeightStore::Publish(std::shared_ptr<const WeightSet> weights) {
  LOCKSTEP_CHECK(weights != nullptr, "WeightStore::Publish needs weights");
  std::shared_ptr<const WeightSet> previous;  // declared before the lock: freed, if nobody reads it, after the release
  MutexLock lock(&mutex_);
  if (current_ != nullptr && (weights->epoch < current_->epoch ||
                              (weights->epoch == current_->epoch && weights->version <= current_->version))) {
    return absl::FailedPreconditionError(absl::StrCat("weights (epoch ", weights->epoch, ", version ", weights->version,
                                                      ") refused: the current ones are (epoch ", current_->epoch,
                                                      ", version ", current_->version, "), and versions only rise"));
  }
  previous = std::exchange(current_, std::move(weights));
  return absl::OkStatus();
}

}  // namespace lockstep
