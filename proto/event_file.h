// A file of TensorBoard events: FOLDER/events.out.tfevents.TIME.HOST.PID, TFRecord frames around messages of
// proto/tensorboard.proto. A frame is
//   uint64 length, little-endian | uint32 masked CRC-32C of those 8 bytes | message | uint32 masked CRC-32C of it
// with masked(c) = rotate_right(c, 15) + 0xA282EAD8, as tensorflow/core/lib/io/record_writer.h has it.
#ifndef LOCKSTEP_PROTO_EVENT_FILE_H_
#define LOCKSTEP_PROTO_EVENT_FILE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

struct Scalar {
  std::string tag;  // "group/name"
  double value = 0;
};

std::string TfRecord(std::string_view message);
// The messages of a file's frames; DATA_LOSS names the byte where a length or a CRC does not hold.
absl::StatusOr<std::vector<std::string>> ReadTfRecords(std::string_view bytes);

class EventFile {
 public:
  // A new file, named so that it sorts after all others of the folder (readers take them in that order), also where the
  // clock was set back. Makes the folder. start_step: tells readers to drop what they have of this step and later ones,
  // which a resumed run does again; none: nothing is dropped.
  static absl::StatusOr<EventFile> Create(const std::string& folder, double wall_time,
                                          std::optional<uint64_t> start_step);
  EventFile(EventFile&& other) noexcept;
  EventFile& operator=(EventFile&& other) noexcept;
  ~EventFile();

  // One event with all scalars, in one write. After an error the file holds what it held before, and takes no more: a
  // torn frame would hide what follows from readers.
  absl::Status Add(double wall_time, uint64_t step, const std::vector<Scalar>& scalars);
  const std::string& path() const { return path_; }

 private:
  EventFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  absl::Status Write(const std::string& bytes);

  int fd_ = -1;
  std::string path_;
  int64_t size_ = 0;
};

// The folder's events while a run writes them: opens its file with the first event, and another after an error, so that
// a disk that was full costs the events of that time.
class EventLog {
 public:
  EventLog(std::string folder, uint64_t start_step) : folder_(std::move(folder)), start_step_(start_step) {}
  absl::Status Add(double wall_time, uint64_t step, const std::vector<Scalar>& scalars);

 private:
  std::string folder_;
  std::optional<uint64_t> start_step_;  // until it is written
  std::optional<EventFile> file_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_PROTO_EVENT_FILE_H_
