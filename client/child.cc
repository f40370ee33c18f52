#include "client/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace lockstep {
namespace {

bool Executable(const std::string& path) { return access(path.c_str(), X_OK) == 0; }

}  // namespace

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

absl::StatusOr<std::string> FindBinary(const std::string& name) {
  std::vector<std::string> folders;
  if (const char* folder = std::getenv("LOCKSTEP_BIN_DIR"); folder != nullptr) folders.push_back(folder);
  char self[4096];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
  if (length > 0) {
    const std::string path(self, static_cast<size_t>(length));
    const std::string folder = path.substr(0, path.rfind('/'));
    folders.push_back(folder);
    folders.push_back(folder + "/../learner");
    folders.push_back(folder + "/../rollout_server");
    folders.push_back(folder + "/../engine/tokenizer");
  }
  for (const std::string& folder : folders) {
    if (Executable(folder + "/" + name)) return folder + "/" + name;
  }
  return absl::NotFoundError(absl::StrCat("the program ", name,
                                          " is not beside this one; build it (bazel build //...) or set "
                                          "LOCKSTEP_BIN_DIR to its folder"));
}

absl::Status BecomeProgram(const std::string& name, std::vector<std::string> arguments) {
  absl::StatusOr<std::string> binary = FindBinary(name);
  if (!binary.ok()) return binary.status();
  std::vector<char*> argv = {binary->data()};
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  execv(binary->c_str(), argv.data());
  return absl::UnavailableError(absl::StrCat("cannot execute ", *binary, ": ", std::strerror(errno)));
}

absl::StatusOr<Child> Child::Start(const std::string& name, const std::string& binary,
                                   const std::vector<std::string>& arguments, const std::string& log_path) {
  Child child;
  child.name_ = name;
  child.log_path_ = log_path;
  const int log = open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log < 0) {
    return absl::UnavailableError(absl::StrCat("cannot write ", log_path, ": ", std::strerror(errno)));
  }
  struct stat info;
  child.log_begin_ = fstat(log, &info) == 0 ? static_cast<long>(info.st_size) : 0;
  std::vector<char*> argv = {const_cast<char*>(binary.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  child.pid_ = fork();
  if (child.pid_ == 0) {
    setpgid(0, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, 0);
    dup2(log, 1);
    dup2(log, 2);
    execv(binary.c_str(), argv.data());
    constexpr char kMessage[] = "error: cannot execute the program\n";
    (void)!write(2, kMessage, sizeof(kMessage) - 1);
    _exit(127);
  }
  close(log);
  if (child.pid_ < 0) return absl::UnavailableError(absl::StrCat("cannot start ", name, ": ", std::strerror(errno)));
  return child;
}

Child Child::Adopt(const std::string& name, pid_t pid, const std::string& log_path) {
  Child child;
  child.name_ = name;
  child.log_path_ = log_path;
  child.pid_ = pid;
  return child;
}

std::optional<int> Child::Poll() {
  if (exit_code_.has_value()) return exit_code_;
  int state = 0;
  if (waitpid(pid_, &state, WNOHANG) == pid_) {
    exit_code_ = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
  }
  return exit_code_;
}

void Child::Signal(int signal) {
  if (!Poll().has_value()) kill(pid_, signal);
}

void Child::End(double seconds) {
  Signal(SIGTERM);
  const absl::Time deadline = absl::Now() + absl::Seconds(seconds);
  while (!Poll().has_value()) {
    if (absl::Now() > deadline) Signal(SIGKILL);
    absl::SleepFor(absl::Milliseconds(20));
  }
}

std::string Child::Reason() const {
  std::ifstream file(log_path_);
  file.seekg(log_begin_);
  std::string line, last;
  while (std::getline(file, line)) {
    if (line.rfind("error: ", 0) == 0) return absl::StrCat(name_, ": ", line.substr(7), " (log: ", log_path_, ")");
    if (!line.empty()) last = line;
  }
  const std::string how = !exit_code_.has_value() ? "runs"
                          : *exit_code_ > 128     ? absl::StrCat("was killed by signal ", *exit_code_ - 128)
                                                  : absl::StrCat("ended with exit code ", *exit_code_);
  return absl::StrCat(name_, " ", how, last.empty() ? "" : "; its last line: ", last, " (log: ", log_path_, ")");
}

absl::StatusOr<std::string> WaitForAddress(Child& child, const std::string& path, double seconds) {
  const absl::Time deadline = absl::Now() + absl::Seconds(seconds);
  while (true) {
    if (std::string line = FirstLine(path); !line.empty()) return line;
    if (child.Poll().has_value()) return absl::UnavailableError(child.Reason());
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat(child.name(), " does not serve after ", seconds, " s; ", child.Reason()));
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
}

}  // namespace lockstep
