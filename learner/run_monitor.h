// What the run is doing, and what it was asked to do: the seam between the run loop and everyone who watches or
// commands. Thread safe.
#ifndef LOCKSTEP_LEARNER_RUN_MONITOR_H_
#define LOCKSTEP_LEARNER_RUN_MONITOR_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/mutex.h"
#include "proto/learner.pb.h"

namespace lockstep {

class RunMonitor {
 public:
  RunMonitor(const std::string& run_id, const std::string& run_dir, uint64_t max_steps);

  // The run loop's side.
  // Changes the status and tells every watcher.
  void Publish(const std::function<void(v1::RunStatus&)>& change) ABSL_LOCKS_EXCLUDED(mutex_);
  // Changes the status; watchers hear of it at most once a second.
  void Progress(const std::function<void(v1::RunStatus&)>& change) ABSL_LOCKS_EXCLUDED(mutex_);
  bool paused() const ABSL_LOCKS_EXCLUDED(mutex_);
  bool stop_requested() const ABSL_LOCKS_EXCLUDED(mutex_);
  bool checkpoint_requested() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Answers everyone who waits in RequestCheckpoint.
  void CheckpointDone(const absl::StatusOr<std::string>& path) ABSL_LOCKS_EXCLUDED(mutex_);
  // Until a command arrives, at most `timeout`.
  void WaitForCommand(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);

  // The control service's side.
  v1::RunStatus status() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Number of the next event; a watcher starts there.
  uint64_t next_event() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Events from *next on (at most kMaxEvents back), advancing it; empty when none came within `timeout`.
  std::vector<v1::RunStatus> WaitForEvents(uint64_t* next, absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);
  void RequestPause(bool pause) ABSL_LOCKS_EXCLUDED(mutex_);
  void RequestStop() ABSL_LOCKS_EXCLUDED(mutex_);
  // Asks for a checkpoint of the last finished step and waits for it. UNAVAILABLE when the run ends first.
  absl::StatusOr<std::string> RequestCheckpoint(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // A watcher that is this far behind misses the oldest events.
  static constexpr size_t kMaxEvents = 256;
  void AddEvent() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable Mutex mutex_;
  CondVar changed_;
  v1::RunStatus status_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::RunStatus> events_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_event_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time last_event_ ABSL_GUARDED_BY(mutex_);
  bool pause_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t commands_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t seen_commands_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t checkpoints_asked_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t checkpoints_done_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::StatusOr<std::string> checkpoint_ ABSL_GUARDED_BY(mutex_) = std::string();
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_RUN_MONITOR_H_
