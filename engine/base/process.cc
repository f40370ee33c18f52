#include "engine/base/process.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"

namespace lockstep {
namespace {

void SignalEvent(int fd) {
  const uint64_t one = 1;
  (void)!write(fd, &one, sizeof(one));
}

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::Status WriteAll(int fd, std::string_view bytes, const std::string& path) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = write(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "cannot write", path);
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status WriteAndSync(int fd, std::string_view bytes, const std::string& path) {
  if (absl::Status status = WriteAll(fd, bytes, path); !status.ok()) return status;
  // Never retried: after a failed fsync the kernel may have dropped the pages, and a second call would report success.
  if (fsync(fd) != 0) return ErrnoStatus(errno, "cannot fsync", path);
  return absl::OkStatus();
}

absl::Status WriteInPlace(const std::string& path, std::string_view bytes) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "cannot open", path);
  absl::Status status = WriteAll(fd, bytes, path);
  if (close(fd) != 0 && status.ok()) status = ErrnoStatus(errno, "cannot close", path);
  return status;
}

}  // namespace

StopSignal::StopSignal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  LOCKSTEP_CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "pthread_sigmask");
  signal(SIGPIPE, SIG_IGN);
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  stop_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  LOCKSTEP_CHECK(signal_fd_ >= 0 && wake_fd_ >= 0 && stop_fd_ >= 0, "signalfd or eventfd");
  thread_ = std::thread([this] { Run(); });
}

StopSignal::~StopSignal() {
  SignalEvent(wake_fd_);
  thread_.join();
  close(signal_fd_);
  close(wake_fd_);
  close(stop_fd_);
}

void StopSignal::Run() {
  while (true) {
    pollfd fds[] = {{signal_fd_, POLLIN, 0}, {wake_fd_, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) continue;  // EINTR
    if (fds[1].revents != 0) return;
    signalfd_siginfo info{};
    if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) continue;
    if (stopped()) _exit(128 + static_cast<int>(info.ssi_signo));
    Request(info.ssi_signo == SIGTERM ? "SIGTERM" : "SIGINT");
  }
}

void StopSignal::Request(std::string_view reason) {
  std::vector<std::function<void(const std::string&)>> callbacks;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopped()) return;
    reason_ = std::string(reason);
    callbacks.swap(callbacks_);
    stopped_.store(true, std::memory_order_release);
  }
  SignalEvent(stop_fd_);
  for (const auto& callback : callbacks) callback(std::string(reason));
}

bool StopSignal::WaitFor(absl::Duration timeout) const {
  const absl::Time deadline = absl::Now() + timeout;
  while (!stopped()) {
    const double left = absl::ToDoubleMilliseconds(deadline - absl::Now());
    if (left <= 0) return false;
    pollfd fd = {stop_fd_, POLLIN, 0};
    poll(&fd, 1, left > 1e9 ? -1 : static_cast<int>(left) + 1);
  }
  return true;
}

void StopSignal::Wait() const { WaitFor(absl::InfiniteDuration()); }

void StopSignal::OnStop(std::function<void(const std::string&)> callback) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!stopped()) {
      callbacks_.push_back(std::move(callback));
      return;
    }
  }
  callback(reason());
}

std::string StopSignal::reason() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return reason_;
}

ParentWatch::ParentWatch(int parent_pid, std::function<void()> on_exit) {
  if (parent_pid <= 0) return;
  // The signal comes at the death of the parent *thread*; the pidfd below is what decides, this is the second line.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  pid_fd_ = static_cast<int>(syscall(SYS_pidfd_open, parent_pid, 0));
  if (pid_fd_ < 0 && errno == ESRCH) {
    thread_ = std::thread(std::move(on_exit));
    return;
  }
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  LOCKSTEP_CHECK(wake_fd_ >= 0, "eventfd");
  thread_ = std::thread([this, parent_pid, callback = std::move(on_exit)] {
    while (true) {
      pollfd fds[] = {{wake_fd_, POLLIN, 0}, {pid_fd_, POLLIN, 0}};
      // Without pidfd_open (a kernel before 5.3, or a filter) the process is asked for every 200 ms.
      poll(fds, pid_fd_ >= 0 ? 2 : 1, pid_fd_ >= 0 ? -1 : 200);
      if (fds[0].revents != 0) return;
      const bool gone = pid_fd_ >= 0 ? fds[1].revents != 0 : kill(parent_pid, 0) != 0 && errno == ESRCH;
      if (!gone) continue;
      callback();
      return;
    }
  });
}

ParentWatch::~ParentWatch() {
  if (wake_fd_ >= 0) SignalEvent(wake_fd_);
  if (thread_.joinable()) thread_.join();
  if (wake_fd_ >= 0) close(wake_fd_);
  if (pid_fd_ >= 0) close(pid_fd_);
}

absl::Status ErrnoStatus(int error_number, std::string_view what, const std::string& path) {
  char buffer[128];
  const char* text = strerror_r(error_number, buffer, sizeof(buffer));
  const std::string message = absl::StrCat(std::string(what), " ", path, ": ", text);
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:  // a limit on file sizes
      return absl::ResourceExhaustedError(message);
    case ENOENT:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case EEXIST:
      return absl::AlreadyExistsError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::Status SyncDirectory(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "cannot open folder", path);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  return result == 0 ? absl::OkStatus() : ErrnoStatus(error, "cannot fsync folder", path);
}

absl::Status WriteFileAtomically(const std::string& given, std::string_view bytes) {
  std::string path = given;
  struct stat info {};
  if (stat(given.c_str(), &info) == 0) {
    if (!S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) return WriteInPlace(given, bytes);
    // A link stays a link: what it points at is replaced.
    char resolved[PATH_MAX];
    struct stat link {};
    if (lstat(given.c_str(), &link) == 0 && S_ISLNK(link.st_mode) && realpath(given.c_str(), resolved) != nullptr) {
      path = resolved;
    }
  }
  const std::string temporary = absl::StrCat(path, ".tmp.", getpid());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, "cannot create", temporary);
  absl::Status status = WriteAndSync(fd, bytes, temporary);
  if (close(fd) != 0 && status.ok()) status = ErrnoStatus(errno, "cannot close", temporary);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0)
    status = ErrnoStatus(errno, "cannot rename to", path);
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  return SyncDirectory(DirectoryOf(path));
}

absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "cannot open", path);
  struct stat info {};
  std::string bytes;
  absl::Status status;
  if (fstat(fd, &info) != 0) {
    status = ErrnoStatus(errno, "cannot stat", path);
  } else if (!S_ISREG(info.st_mode)) {
    status = absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file"));
  } else if (static_cast<uint64_t>(info.st_size) > max_bytes) {
    status = absl::ResourceExhaustedError(
        absl::StrCat(path, ": is ", info.st_size, " bytes long, the limit is ", max_bytes));
  } else {
    bytes.resize(static_cast<size_t>(info.st_size));
    for (size_t done = 0; done < bytes.size() && status.ok();) {
      const ssize_t n = read(fd, bytes.data() + done, bytes.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) status = ErrnoStatus(errno, "cannot read", path);
      if (n == 0) status = absl::DataLossError(absl::StrCat(path, ": became shorter while it was read"));
      if (n > 0) done += static_cast<size_t>(n);
    }
  }
  close(fd);
  if (!status.ok()) return status;
  return bytes;
}

}  // namespace lockstep
