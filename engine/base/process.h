// What a service process needs from the operating system: stop signals without work in a signal handler, an end when
// its parent has gone, and files that are either whole or not there.
#ifndef LOCKSTEP_ENGINE_BASE_PROCESS_H_
#define LOCKSTEP_ENGINE_BASE_PROCESS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lockstep {

// SIGTERM and SIGINT as data. Construct it in main before any other thread starts: it blocks both signals for this
// thread and all that it starts, and a thread of its own reads them from a signalfd. A second signal while stopping
// ends the process at once with exit code 128 + signal. SIGPIPE is ignored from here on.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // True once a signal (or Request) has come.
  bool stopped() const { return stopped_.load(std::memory_order_acquire); }
  bool operator()() const { return stopped(); }
  // A stop without a signal: the parent has gone, an RPC asked for a drain.
  void Request(std::string_view reason);
  // Blocks until stopped.
  void Wait() const;
  // False when `timeout` passed first.
  bool WaitFor(absl::Duration timeout) const;
  // Called once, on a thread that is not a signal handler, with the reason ("SIGTERM"); at once if already stopped.
  void OnStop(std::function<void(const std::string& reason)> callback);
  std::string reason() const;

 private:
  void Run();
  mutable std::mutex mutex_;
  std::atomic<bool> stopped_{false};
  std::string reason_;
  std::vector<std::function<void(const std::string&)>> callbacks_;
  int signal_fd_ = -1;
  int wake_fd_ = -1;  // eventfd that ends the thread
  int stop_fd_ = -1;  // eventfd that stays readable once stopped
  std::thread thread_;
};

// Calls `on_exit` once, on a thread of its own, when process `parent_pid` is gone: at once if it already is. Also asks
// the kernel for SIGTERM at the death of the parent (PR_SET_PDEATHSIG). parent_pid 0 watches nothing.
class ParentWatch {
 public:
  ParentWatch(int parent_pid, std::function<void()> on_exit);
  ~ParentWatch();

 private:
  int pid_fd_ = -1;
  int wake_fd_ = -1;
  std::thread thread_;
};

// Writes path + ".tmp.PID", fsync, rename to path, fsync of the directory. On an error (disk full, ...) the old file is
// as it was, and the temporary is gone. RESOURCE_EXHAUSTED for a full disk or quota. Through a symbolic link the
// file that it points at is replaced. What is no file (a pipe, a device, /dev/stdout) is written to as it is.
absl::Status WriteFileAtomically(const std::string& path, std::string_view bytes);
// The whole file. RESOURCE_EXHAUSTED when it is larger than `max_bytes`; nothing is allocated before that is known.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes = uint64_t{1} << 30);
// fsync of a directory, so that a rename in it is durable.
absl::Status SyncDirectory(const std::string& path);
// Status for errno in one line: "what PATH: No space left on device".
absl::Status ErrnoStatus(int error_number, std::string_view what, const std::string& path);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_PROCESS_H_
