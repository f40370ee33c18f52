#include "proto/event_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/crc32c.h"
#include "proto/tensorboard.pb.h"

namespace lockstep {
namespace {

constexpr char kPrefix[] = "events.out.tfevents.";
constexpr char kFileVersion[] = "brain.Event:2";
constexpr int64_t kLastTime = 9'999'999'998;  // of ten digits, so that names sort as their times do
constexpr size_t kHeaderBytes = 12;
constexpr size_t kFrameBytes = kHeaderBytes + 4;

uint32_t MaskedCrc(std::string_view bytes) {
  const uint32_t crc = Crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

void AppendLittleEndian(uint64_t value, int bytes, std::string* out) {
  for (int i = 0; i < bytes; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}

uint64_t LittleEndian(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

absl::Status WriteError(int error, const std::string& path) {
  const std::string message = absl::StrCat("cannot write ", path, ": ", std::strerror(error));
  return error == ENOSPC || error == EDQUOT ? absl::ResourceExhaustedError(message) : absl::UnavailableError(message);
}

std::string HostName() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return "localhost";
  std::string host = name;
  for (char& c : host) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '.') c = '_';
  }
  return host;
}

// The largest TIME in the names of the folder's event files; 0 when there is none.
int64_t NewestTime(const std::string& folder) {
  int64_t newest = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.rfind(kPrefix, 0) != 0) continue;
    int64_t time = 0;
    const std::string rest = name.substr(sizeof(kPrefix) - 1);
    if (absl::SimpleAtoi(rest.substr(0, rest.find('.')), &time) && time <= kLastTime) newest = std::max(newest, time);
  }
  return newest;
}

}  // namespace

std::string TfRecord(std::string_view message) {
  std::string frame;
  frame.reserve(message.size() + kFrameBytes);
  AppendLittleEndian(message.size(), 8, &frame);
  AppendLittleEndian(MaskedCrc(frame), 4, &frame);
  frame.append(message);
  AppendLittleEndian(MaskedCrc(message), 4, &frame);
  return frame;
}

absl::StatusOr<std::vector<std::string>> ReadTfRecords(std::string_view bytes) {
  std::vector<std::string> messages;
  for (size_t at = 0; at < bytes.size();) {
    const std::string_view rest = bytes.substr(at);
    const auto broken = [at](const char* what) {
      return absl::DataLossError(absl::StrCat("event file: the frame at byte ", at, " ", what));
    };
    if (rest.size() < kFrameBytes) return broken("is cut off");
    if (LittleEndian(rest.substr(8, 4)) != MaskedCrc(rest.substr(0, 8))) return broken("has a damaged length");
    const uint64_t length = LittleEndian(rest.substr(0, 8));
    if (length > rest.size() - kFrameBytes) return broken("is cut off");
    const std::string_view message = rest.substr(kHeaderBytes, length);
    if (LittleEndian(rest.substr(kHeaderBytes + length, 4)) != MaskedCrc(message)) return broken("is damaged");
    messages.emplace_back(message);
    at += kFrameBytes + length;
  }
  return messages;
}

absl::StatusOr<EventFile> EventFile::Create(const std::string& folder, double wall_time,
                                            std::optional<uint64_t> start_step) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return absl::UnavailableError(absl::StrCat("cannot create folder ", folder, ": ", error.message()));
  const int64_t time = std::max(static_cast<int64_t>(wall_time), NewestTime(folder) + 1);
  const std::string path = absl::StrFormat("%s/%s%010d.%s.%d", folder, kPrefix, time, HostName(), getpid());
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return WriteError(errno, path);
  EventFile file(fd, path);
  tensorboard::Event event;
  event.set_wall_time(wall_time);
  event.set_file_version(kFileVersion);
  std::string bytes = TfRecord(event.SerializeAsString());
  if (start_step.has_value()) {
    event.set_step(static_cast<int64_t>(*start_step));
    event.mutable_session_log()->set_status(tensorboard::SessionLog::START);
    bytes += TfRecord(event.SerializeAsString());
  }
  if (absl::Status status = file.Write(bytes); !status.ok()) {
    unlink(path.c_str());
    return status;
  }
  return file;
}

EventFile::EventFile(EventFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)), size_(other.size_) {}

EventFile& EventFile::operator=(EventFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  std::swap(size_, other.size_);
  return *this;
}

EventFile::~EventFile() {
  if (fd_ >= 0) close(fd_);
}

absl::Status EventFile::Write(const std::string& bytes) {
  if (fd_ < 0) return absl::FailedPreconditionError(absl::StrCat(path_, " was given up after an error"));
  size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t n = write(fd_, bytes.data() + written, bytes.size() - written);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const absl::Status status = WriteError(n < 0 ? errno : ENOSPC, path_);
      if (ftruncate(fd_, size_) != 0) {
        // The torn frame stays; readers go on with the folder's next file all the same.
      }
      close(std::exchange(fd_, -1));
      return status;
    }
    written += static_cast<size_t>(n);
  }
  size_ += static_cast<int64_t>(bytes.size());
  return absl::OkStatus();
}

absl::Status EventFile::Add(double wall_time, uint64_t step, const std::vector<Scalar>& scalars) {
  tensorboard::Event event;
  event.set_wall_time(wall_time);
  event.set_step(static_cast<int64_t>(step));
  for (const Scalar& scalar : scalars) {
    auto* value = event.mutable_summary()->add_value();
    value->set_tag(scalar.tag);
    value->set_simple_value(static_cast<float>(scalar.value));
  }
  return Write(TfRecord(event.SerializeAsString()));
}

absl::Status EventLog::Add(double wall_time, uint64_t step, const std::vector<Scalar>& scalars) {
  if (!file_.has_value()) {
    auto file = EventFile::Create(folder_, wall_time, start_step_);
    if (!file.ok()) return file.status();
    file_ = *std::move(file);
    start_step_.reset();
  }
  absl::Status status = file_->Add(wall_time, step, scalars);
  if (!status.ok()) file_.reset();
  return status;
}

}  // namespace lockstep
