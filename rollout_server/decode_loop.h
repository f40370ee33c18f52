// The one thread that touches the engine. Requests of other threads are commands that it takes between two engine
// steps; so a weight switch falls between two steps by construction.
#ifndef LOCKSTEP_ROLLOUT_SERVER_DECODE_LOOP_H_
#define LOCKSTEP_ROLLOUT_SERVER_DECODE_LOOP_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rollout_server/batch_engine.h"

namespace lockstep {

class DecodeLoop {
 public:
  // metrics outlives the loop. The thread runs from here on. on_failure (may be null) is called once, by the loop's
  // thread, when the engine's backend has failed.
  DecodeLoop(std::unique_ptr<BatchEngine> engine, RolloutMetrics* metrics,
             std::function<void(const absl::Status&)> on_failure = nullptr);
  // Ends the thread after the step under way; samples in flight are dropped.
  ~DecodeLoop();

  // Runs `command` between two steps, on the loop's thread. Commands keep their order.
  void Post(std::function<void(BatchEngine&)> command) ABSL_LOCKS_EXCLUDED(mutex_);

  // Makes `weights` current between two steps. Returns the seconds for which decoding stood still; DEADLINE_EXCEEDED
  // leaves the old weights current.
  absl::StatusOr<double> Flip(std::shared_ptr<const WeightSet> weights, const std::string& in_flight,
                              absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether all commands so far are done and no sample is in flight before `timeout` has passed.
  bool WaitUntilIdle(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);
  // As of the last step.
  EngineStats stats() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run();
  // Takes commands, waiting for some when there is nothing to compute. False: stop.
  bool TakeCommands(bool stepped, std::deque<std::function<void(BatchEngine&)>>* taken) ABSL_LOCKS_EXCLUDED(mutex_);
  void Publish() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::unique_ptr<BatchEngine> engine_;  // of the loop's thread, but for Prepare
  RolloutMetrics* const metrics_;
  std::function<void(const absl::Status&)> on_failure_;
  // std::mutex and not absl::Mutex: ThreadSanitizer sees its locks, while the installed Abseil is built without it.
  mutable std::mutex mutex_;
  std::condition_variable changed_;  // a command, stop or idle
  std::deque<std::function<void(BatchEngine&)>> commands_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool idle_ ABSL_GUARDED_BY(mutex_) = true;
  EngineStats stats_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_DECODE_LOOP_H_
