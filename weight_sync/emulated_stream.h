// A stream of device_emulation.h: a thread that works off a queue.
#ifndef LOCKSTEP_WEIGHT_SYNC_EMULATED_STREAM_H_
#define LOCKSTEP_WEIGHT_SYNC_EMULATED_STREAM_H_

#include <deque>
#include <functional>
#include <thread>
#include <utility>

#include "engine/base/mutex.h"

namespace lockstep {

class EmulatedStream {
 public:
  EmulatedStream() : thread_([this] { Work(); }) {}
  // After all that was enqueued.
  ~EmulatedStream() {
    {
      MutexLock lock(&mutex_);
      stop_ = true;
      changed_.SignalAll();
    }
    thread_.join();
  }
  EmulatedStream(const EmulatedStream&) = delete;

  void Enqueue(std::function<void()> task) {
    MutexLock lock(&mutex_);
    tasks_.push_back(std::move(task));
    changed_.SignalAll();
  }
  bool idle() {
    MutexLock lock(&mutex_);
    return tasks_.empty();
  }

 private:
  void Work() {
    while (true) {
      std::function<void()> task;
      {
        MutexLock lock(&mutex_);
        while (tasks_.empty() && !stop_) changed_.Wait(&mutex_);
        if (tasks_.empty()) return;
        task = tasks_.front();
      }
      task();
      MutexLock lock(&mutex_);
      tasks_.pop_front();  // only now: a running task is one that is not done
    }
  }

  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_EMULATED_STREAM_H_
