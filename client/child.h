// A service as a child process of the client: started with its output in a log file, watched, ended.
#ifndef LOCKSTEP_CLIENT_CHILD_H_
#define LOCKSTEP_CLIENT_CHILD_H_

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

// Where a service's binary is: LOCKSTEP_BIN_DIR, beside this executable, or in the sibling folders of a build tree
// (../learner, ../rollout_server, ../engine/tokenizer).
absl::StatusOr<std::string> FindBinary(const std::string& name);

// Program `name`, found as above, takes this process's place, with its standard input and output. Returns only on an
// error.
absl::Status BecomeProgram(const std::string& name, std::vector<std::string> arguments);

class Child {
 public:
  // Starts `binary arguments...` in a process group of its own (so that Ctrl-C reaches the client alone), stdout and
  // stderr appended to log_path.
  static absl::StatusOr<Child> Start(const std::string& name, const std::string& binary,
                                     const std::vector<std::string>& arguments, const std::string& log_path);

  // A child that was forked elsewhere.
  static Child Adopt(const std::string& name, pid_t pid, const std::string& log_path);

  const std::string& name() const { return name_; }
  pid_t pid() const { return pid_; }
  // Exit code (128 + signal when killed) once it has ended; nullopt while it runs. Never blocks.
  std::optional<int> Poll();
  void Signal(int signal);
  // SIGTERM, then SIGKILL after `seconds`; returns when the process is gone.
  void End(double seconds);
  // Why it ended, in one line: the first "error: " line that this start has logged, or the last line, and the log's
  // path.
  std::string Reason() const;

 private:
  std::string name_, log_path_;
  pid_t pid_ = -1;
  long log_begin_ = 0;  // size of the log at the start
  std::optional<int> exit_code_;
};

// Waits until `path` holds a line (written by `child` once it serves), the child ends, or `seconds` pass.
absl::StatusOr<std::string> WaitForAddress(Child& child, const std::string& path, double seconds);

// The file's first line, or empty.
std::string FirstLine(const std::string& path);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_CHILD_H_
