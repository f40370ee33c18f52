// The safetensors format: 8 bytes little-endian header length, a JSON header, the tensors' bytes. The reader maps the
// file and trusts nothing in it: every length, product and offset is checked before use, and a refusal is one line that
// names file, tensor, value and limit. The writer is atomic and durable.
#ifndef LOCKSTEP_ENGINE_CHECKPOINT_SAFETENSORS_H_
#define LOCKSTEP_ENGINE_CHECKPOINT_SAFETENSORS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tensor/dtype.h"

namespace lockstep {

constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
constexpr size_t kMaxSafetensorsTensors = 1'000'000;
constexpr size_t kMaxSafetensorsNameBytes = 1024;
constexpr size_t kMaxSafetensorsRank = 8;

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // as in the file: "F32", "F16", "BF16", "I64", ...
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // byte offsets in the data section
  uint64_t end = 0;
  int64_t num_elements = 1;
};

class SafetensorsFile {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, SafetensorsEntry>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Null when there is no such tensor.
  const SafetensorsEntry* Find(std::string_view name) const;
  // The tensor's bytes in the mapping; any alignment. Valid while the file object lives.
  const void* Data(const SafetensorsEntry& entry) const { return data_ + entry.begin; }
  // Converts elements [first, first + count) to FP32. INVALID_ARGUMENT for a dtype other than F32, F16, BF16.
  absl::Status ReadFloats(const SafetensorsEntry& entry, int64_t first, int64_t count, float* out) const;
  // Takes the mapping's pages out of this process; the next read brings them back from the page cache or the disk.
  void ReleasePages() const;

 private:
  SafetensorsFile() = default;
  std::string path_;
  std::map<std::string, SafetensorsEntry> tensors_;
  std::map<std::string, std::string> metadata_;
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  const char* data_ = nullptr;
};

// Checks a header and fills `tensors` and `metadata`. data_bytes: what follows the header in the file. `file` is only
// for messages.
absl::Status ParseSafetensorsHeader(std::string_view header, uint64_t data_bytes, const std::string& file,
                                    std::map<std::string, SafetensorsEntry>* tensors,
                                    std::map<std::string, std::string>* metadata);

// One tensor to write: FP32 in memory, rounded to `dtype` on the way to the disk.
struct SafetensorsSource {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const float* data = nullptr;
  // Instead of data: writes elements [first, first + count) to `out`. Called in ascending order, a block at a time, so
  // that a model can be written that memory does not hold.
  std::function<void(int64_t first, int64_t count, float* out)> fill = nullptr;
};

// Writes path + ".tmp.PID", fsync, rename, fsync of the folder; on an error the old file is untouched and the temporary
// gone. Tensors are written in the given order through a buffer of 1 MiB.
absl::Status WriteSafetensors(const std::string& path, const std::vector<SafetensorsSource>& tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_CHECKPOINT_SAFETENSORS_H_
