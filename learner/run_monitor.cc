#include "learner/run_monitor.h"

#include "absl/time/clock.h"

namespace lockstep {

RunMonitor::RunMonitor(const std::string& run_id, const std::string& run_dir, uint64_t max_steps)
    : last_event_(absl::InfinitePast()) {
  status_.set_run_id(run_id);
  status_.set_run_dir(run_dir);
  status_.set_max_steps(max_steps);
  status_.set_phase(v1::RUN_PHASE_STARTING);
  status_.set_seconds_left(-1);
}

void RunMonitor::AddEvent() {
  events_.push_back(status_);
  if (events_.size() > kMaxEvents) events_.pop_front();
  ++next_event_;
  last_event_ = absl::Now();
  changed_.SignalAll();
}

void RunMonitor::Publish(const std::function<void(v1::RunStatus&)>& change) {
  MutexLock lock(&mutex_);
  change(status_);
  AddEvent();
}

void RunMonitor::Progress(const std::function<void(v1::RunStatus&)>& change) {
  MutexLock lock(&mutex_);
  change(status_);
  if (absl::Now() - last_event_ >= absl::Seconds(1)) AddEvent();
}

bool RunMonitor::paused() const {
  MutexLock lock(&mutex_);
  return pause_ && !stop_;
}

bool RunMonitor::stop_requested() const {
  MutexLock lock(&mutex_);
  return stop_;
}

bool RunMonitor::checkpoint_requested() const {
  MutexLock lock(&mutex_);
  return checkpoints_done_ < checkpoints_asked_;
}

void RunMonitor::CheckpointDone(const absl::StatusOr<std::string>& path) {
  MutexLock lock(&mutex_);
  checkpoints_done_ = checkpoints_asked_;
  checkpoint_ = path;
  changed_.SignalAll();
}

void RunMonitor::WaitForCommand(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&mutex_);
  while (commands_ == seen_commands_ && absl::Now() < deadline) changed_.WaitWithDeadline(&mutex_, deadline);
  seen_commands_ = commands_;
}

v1::RunStatus RunMonitor::status() const {
  MutexLock lock(&mutex_);
  return status_;
}

uint64_t RunMonitor::next_event() const {
  MutexLock lock(&mutex_);
  return next_event_;
}

std::vector<v1::RunStatus> RunMonitor::WaitForEvents(uint64_t* next, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&mutex_);
  while (*next >= next_event_ && absl::Now() < deadline) changed_.WaitWithDeadline(&mutex_, deadline);
  const uint64_t oldest = next_event_ - events_.size();
  if (*next < oldest) *next = oldest;
  std::vector<v1::RunStatus> events(events_.begin() + static_cast<int64_t>(*next - oldest), events_.end());
  *next = next_event_;
  return events;
}

void RunMonitor::RequestPause(bool pause) {
  MutexLock lock(&mutex_);
  pause_ = pause;
  ++commands_;
  changed_.SignalAll();
}

void RunMonitor::RequestStop() {
  MutexLock lock(&mutex_);
  stop_ = true;
  ++commands_;
  changed_.SignalAll();
}

absl::StatusOr<std::string> RunMonitor::RequestCheckpoint(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&mutex_);
  const uint64_t mine = ++checkpoints_asked_;
  ++commands_;
  changed_.SignalAll();
  while (checkpoints_done_ < mine && !status_.ended() && absl::Now() < deadline) {
    changed_.WaitWithDeadline(&mutex_, deadline);
  }
  if (checkpoints_done_ >= mine) return checkpoint_;
  if (status_.ended()) return absl::UnavailableError("the run has ended");
  return absl::DeadlineExceededError("the checkpoint was not written in time; the run goes on");
}

}  // namespace lockstep
