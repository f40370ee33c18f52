// Mutex, MutexLock and CondVar: the standard library's, with Abseil's names, deadlines and annotations.
//
// Why not absl::Mutex: the system's Abseil is built without the thread sanitizer's hooks, so the sanitizer does not see
// its locks and takes everything that they guard for a race. It sees the standard library's, which are pthreads.
#ifndef LOCKSTEP_ENGINE_BASE_MUTEX_H_
#define LOCKSTEP_ENGINE_BASE_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace lockstep {

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) { mutex_->Lock(); }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mutex_;
};

// Every wait may also end without a reason: the caller looks at its condition again.
class CondVar {
 public:
  void Wait(Mutex* mutex) { WaitWithDeadline(mutex, absl::InfiniteFuture()); }

  // True: the deadline has passed.
  bool WaitWithDeadline(Mutex* mutex, absl::Time deadline) {
    std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);  // held by the caller
    bool passed = false;
    if (deadline == absl::InfiniteFuture()) {
      changed_.wait(lock);
    } else {
      passed = changed_.wait_until(lock, absl::ToChronoTime(deadline)) == std::cv_status::timeout;
    }
    lock.release();  // and held by the caller again
    return passed;
  }
  bool WaitWithTimeout(Mutex* mutex, absl::Duration timeout) { return WaitWithDeadline(mutex, absl::Now() + timeout); }

  void Signal() { changed_.notify_one(); }
  void SignalAll() { changed_.notify_all(); }

 private:
  std::condition_variable changed_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_MUTEX_H_
