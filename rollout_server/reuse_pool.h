// Things that take long to make and to free, device memory above all: what nobody holds any more is handed out again.
// Thread safe. What is held outlives the pool.
#ifndef LOCKSTEP_ROLLOUT_SERVER_REUSE_POOL_H_
#define LOCKSTEP_ROLLOUT_SERVER_REUSE_POOL_H_

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace lockstep {

template <typename T>
class ReusePool {
 public:
  // `what` names the things in errors ("sets of weights"). At most `limit` are made.
  ReusePool(std::string what, size_t limit) : shared_(std::make_shared<Shared>(std::move(what), limit)) {}

  // One that nobody holds, as its last holder left it; where there is none, what `make` makes. Back in the pool when
  // the last copy of the pointer is gone. RESOURCE_EXHAUSTED: `limit` are held.
  absl::StatusOr<std::shared_ptr<T>> Take(absl::FunctionRef<absl::StatusOr<std::unique_ptr<T>>()> make) {
    std::unique_ptr<T> thing;
    {
      const std::lock_guard lock(shared_->mutex);
      if (!shared_->free.empty()) {
        thing = std::move(shared_->free.back());
        shared_->free.pop_back();
      } else if (shared_->made == shared_->limit) {
        return absl::ResourceExhaustedError(absl::StrCat("all ", shared_->limit, " ", shared_->what, " are in use"));
      } else {
        ++shared_->made;
      }
    }
    if (thing == nullptr) {
      absl::StatusOr<std::unique_ptr<T>> made = make();
      if (!made.ok()) {
        const std::lock_guard lock(shared_->mutex);
        --shared_->made;
        return made.status();
      }
      thing = *std::move(made);
    }
    return std::shared_ptr<T>(thing.release(), [shared = shared_](T* back) {
      const std::lock_guard lock(shared->mutex);
      shared->free.emplace_back(back);
    });
  }

 private:
  struct Shared {
    Shared(std::string what, size_t limit) : what(std::move(what)), limit(limit) {}
    const std::string what;
    const size_t limit;
    // std::mutex and not absl::Mutex: see decode_loop.h.
    std::mutex mutex;
    size_t made ABSL_GUARDED_BY(mutex) = 0;
    std::vector<std::unique_ptr<T>> free ABSL_GUARDED_BY(mutex);
  };
  const std::shared_ptr<Shared> shared_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_REUSE_POOL_H_
