#include "engine/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/json.h"
#include "engine/base/process.h"

namespace lockstep {
namespace {

using nlohmann::json;

absl::Status Bad(const std::string& file, const std::string& message) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", message));
}

// Bits of an element; 0: no such dtype.
int DTypeBits(std::string_view name) {
  static constexpr std::pair<std::string_view, int> kBits[] = {
      {"BOOL", 8},    {"U8", 8},      {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F4", 4},
      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"I16", 16}, {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},
      {"U32", 32},    {"F32", 32},    {"F64", 64}, {"I64", 64},    {"U64", 64},    {"C64", 64}};
  for (const auto& [known, bits] : kBits) {
    if (known == name) return bits;
  }
  return 0;
}

// shape, product and offsets of one entry against its dtype and the data section.
absl::Status ReadEntry(const json& value, uint64_t data_bytes, const std::string& file, SafetensorsEntry* entry) {
  const std::string what = absl::StrCat("tensor \"", Printable(entry->name), "\" ");
  if (!value.is_object()) return Bad(file, what + "is " + PrintableJson(value) + ", must be an object");
  for (const auto& item : value.items()) {
    if (item.key() != "dtype" && item.key() != "shape" && item.key() != "data_offsets") {
      return Bad(file, what + "has an unknown key \"" + Printable(item.key()) + "\"");
    }
  }
  const json dtype = value.value("dtype", json());
  if (!dtype.is_string() || DTypeBits(dtype.get_ref<const std::string&>()) == 0) {
    return Bad(file, what + "has dtype " + PrintableJson(dtype) + ", which is not one of the format");
  }
  entry->dtype = dtype.get<std::string>();
  const json shape = value.value("shape", json());
  if (!shape.is_array() || shape.size() > kMaxSafetensorsRank) {
    return Bad(file, absl::StrCat(what, "has shape ", PrintableJson(shape), ", must be an array of at most ",
                                  kMaxSafetensorsRank, " dimensions"));
  }
  for (const json& dim : shape) {
    if (!dim.is_number_unsigned() || dim.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      return Bad(file, what + "has dimension " + PrintableJson(dim) + ", must be an integer of 0 to 2^63-1");
    }
    entry->shape.push_back(dim.get<int64_t>());
    if (__builtin_mul_overflow(entry->num_elements, entry->shape.back(), &entry->num_elements)) {
      return Bad(file, what + "has a shape whose product exceeds 2^63-1");
    }
  }
  int64_t bits = 0;
  if (__builtin_mul_overflow(entry->num_elements, int64_t{DTypeBits(entry->dtype)}, &bits)) {
    return Bad(file, what + "has a size in bits beyond 2^63-1");
  }
  if (bits % 8 != 0) return Bad(file, absl::StrCat(what, "has ", bits, " bits, which is no whole number of bytes"));
  const json offsets = value.value("data_offsets", json());
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    return Bad(file, what + "has data_offsets " + PrintableJson(offsets) + ", must be two integers of 0 or more");
  }
  entry->begin = offsets[0].get<uint64_t>();
  entry->end = offsets[1].get<uint64_t>();
  if (entry->end < entry->begin || entry->end > data_bytes) {
    return Bad(file, absl::StrCat(what, "has data_offsets ", entry->begin, " to ", entry->end,
                                  ", must ascend within the file's ", data_bytes, " data bytes"));
  }
  if (entry->end - entry->begin != static_cast<uint64_t>(bits / 8)) {
    return Bad(file, absl::StrCat(what, "needs ", bits / 8, " bytes by its shape and dtype, its data_offsets span ",
                                  entry->end - entry->begin));
  }
  return absl::OkStatus();
}

absl::Status ReadMetadata(const json& value, const std::string& file, std::map<std::string, std::string>* metadata) {
  if (!value.is_object()) return Bad(file, "__metadata__ is " + PrintableJson(value) + ", must be an object");
  for (const auto& item : value.items()) {
    if (!item.value().is_string()) {
      return Bad(file, "__metadata__ \"" + Printable(item.key()) + "\" is " + PrintableJson(item.value()) +
                           ", must be a string");
    }
    (*metadata)[item.key()] = item.value().get<std::string>();
  }
  return absl::OkStatus();
}

// In order of offset the tensors must tile [0, data_bytes): no hole, no overlap, nothing behind.
absl::Status CheckTiling(const std::map<std::string, SafetensorsEntry>& tensors, uint64_t data_bytes,
                         const std::string& file) {
  std::vector<const SafetensorsEntry*> sorted;
  for (const auto& item : tensors) sorted.push_back(&item.second);
  std::sort(sorted.begin(), sorted.end(), [](const SafetensorsEntry* a, const SafetensorsEntry* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  uint64_t expected = 0;
  for (const SafetensorsEntry* entry : sorted) {
    if (entry->begin != expected) {
      return Bad(file, absl::StrCat("tensor \"", Printable(entry->name), "\" begins at ", entry->begin, ", must at ",
                                    expected, " (", entry->begin < expected ? "an overlap" : "a hole", ")"));
    }
    expected = entry->end;
  }
  if (expected != data_bytes) {
    return Bad(file, absl::StrCat("tensors end at ", expected, ", the file has ", data_bytes, " data bytes"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ParseSafetensorsHeader(std::string_view header, uint64_t data_bytes, const std::string& file,
                                    std::map<std::string, SafetensorsEntry>* tensors,
                                    std::map<std::string, std::string>* metadata) {
  if (header.empty() || header[0] != '{') return Bad(file, "header must begin with \"{\"");
  const size_t last = header.find_last_not_of(' ');
  if (header[last] != '}') return Bad(file, "header must end with \"}\" and spaces");
  const absl::StatusOr<json> root = ParseJson(header.substr(0, last + 1), file);
  if (!root.ok()) return root.status();
  if (root->size() > kMaxSafetensorsTensors) {
    return Bad(file, absl::StrCat("has ", root->size(), " tensors, the limit is ", kMaxSafetensorsTensors));
  }
  for (const auto& item : root->items()) {
    if (item.key() == "__metadata__") {
      if (absl::Status status = ReadMetadata(item.value(), file, metadata); !status.ok()) return status;
      continue;
    }
    if (item.key().size() > kMaxSafetensorsNameBytes) {
      return Bad(file, absl::StrCat("a tensor name of ", item.key().size(), " bytes, the limit is ",
                                    kMaxSafetensorsNameBytes));
    }
    SafetensorsEntry entry;
    entry.name = item.key();
    if (absl::Status status = ReadEntry(item.value(), data_bytes, file, &entry); !status.ok()) return status;
    tensors->emplace(item.key(), std::move(entry));
  }
  return CheckTiling(*tensors, data_bytes, file);
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "cannot open", path);
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return Bad(path, "is not a regular file");
  }
  const auto size = static_cast<uint64_t>(info.st_size);
  if (size < 8) {
    close(fd);
    return Bad(path, absl::StrCat("is ", size, " bytes long; a safetensors file has at least 8"));
  }
  auto file = std::unique_ptr<SafetensorsFile>(new SafetensorsFile());
  file->path_ = path;
  void* mapping = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  close(fd);
  if (mapping == MAP_FAILED) return ErrnoStatus(error, "cannot map", path);
  file->mapping_ = mapping;
  file->mapping_bytes_ = size;
  const char* bytes = static_cast<const char*>(mapping);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes, 8);  // little-endian, as this machine is
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return Bad(path, absl::StrCat("header of ", header_bytes, " bytes, the limit is ", kMaxSafetensorsHeaderBytes));
  }
  if (header_bytes > size - 8) {
    return Bad(path, absl::StrCat("header of ", header_bytes, " bytes, the file has ", size - 8,
                                  " after the length; is it truncated?"));
  }
  file->data_ = bytes + 8 + header_bytes;
  const absl::Status status = ParseSafetensorsHeader(std::string_view(bytes + 8, header_bytes), size - 8 - header_bytes,
                                                     path, &file->tensors_, &file->metadata_);
  if (!status.ok()) return status;
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

void SafetensorsFile::ReleasePages() const {
  if (mapping_ != nullptr) (void)madvise(mapping_, mapping_bytes_, MADV_DONTNEED);
}

const SafetensorsEntry* SafetensorsFile::Find(std::string_view name) const {
  const auto it = tensors_.find(std::string(name));
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::Status SafetensorsFile::ReadFloats(const SafetensorsEntry& entry, int64_t first, int64_t count,
                                         float* out) const {
  LOCKSTEP_CHECK(first >= 0 && count >= 0 && first <= entry.num_elements - count, "elements outside the tensor");
  DType dtype = DType::kF32;
  if (entry.dtype == "F16") {
    dtype = DType::kF16;
  } else if (entry.dtype == "BF16") {
    dtype = DType::kBF16;
  } else if (entry.dtype != "F32") {
    return Bad(path_, absl::StrCat("tensor \"", Printable(entry.name), "\" has dtype ", entry.dtype,
                                   "; F32, F16 and BF16 work"));
  }
  const char* source = static_cast<const char*>(Data(entry)) + static_cast<size_t>(first) * DTypeSize(dtype);
  if (count > 0) ConvertToFloat(dtype, source, out, static_cast<size_t>(count));
  return absl::OkStatus();
}

namespace {

constexpr int64_t kWriteBlock = 262144;  // elements converted at a time

// A file under a temporary name that vanishes unless it is committed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path) : path_(path), temporary_(absl::StrCat(path, ".tmp.", getpid())) {
    fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0) status_ = ErrnoStatus(errno, "cannot create", temporary_);
  }
  ~TemporaryFile() {
    if (fd_ < 0) return;
    close(fd_);
    unlink(temporary_.c_str());
  }
  void Append(const void* data, size_t bytes) {
    const char* p = static_cast<const char*>(data);
    while (status_.ok() && bytes > 0) {
      const ssize_t n = write(fd_, p, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        status_ = ErrnoStatus(errno, "cannot write", temporary_);
        return;
      }
      p += n;
      bytes -= static_cast<size_t>(n);
    }
  }
  absl::Status Commit() {
    if (status_.ok() && fsync(fd_) != 0) status_ = ErrnoStatus(errno, "cannot fsync", temporary_);
    if (status_.ok() && rename(temporary_.c_str(), path_.c_str()) != 0) {
      status_ = ErrnoStatus(errno, "cannot rename to", path_);
    }
    if (!status_.ok()) return status_;
    close(fd_);
    fd_ = -1;
    const size_t slash = path_.rfind('/');
    return SyncDirectory(slash == std::string::npos ? "." : path_.substr(0, slash + 1));
  }
  const absl::Status& status() const { return status_; }

 private:
  std::string path_, temporary_;
  int fd_ = -1;
  absl::Status status_;
};

const char* FileDType(DType dtype) { return dtype == DType::kF32 ? "F32" : dtype == DType::kF16 ? "F16" : "BF16"; }

int64_t NumElements(const SafetensorsSource& tensor) {
  int64_t count = 1;
  for (const int64_t dim : tensor.shape) count *= dim;
  return count;
}

}  // namespace

absl::Status WriteSafetensors(const std::string& path, const std::vector<SafetensorsSource>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const SafetensorsSource& tensor : tensors) {
    const uint64_t bytes = static_cast<uint64_t>(NumElements(tensor)) * DTypeSize(tensor.dtype);
    LOCKSTEP_CHECK(!header.contains(tensor.name), "tensor written twice");
    header[tensor.name] = {
        {"dtype", FileDType(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // the data section begins 8-byte aligned
  const uint64_t length = text.size();
  TemporaryFile file(path);
  file.Append(&length, 8);
  file.Append(text.data(), text.size());
  std::vector<char> block(static_cast<size_t>(kWriteBlock) * 4);
  std::vector<float> filled;
  for (const SafetensorsSource& tensor : tensors) {
    const int64_t count = NumElements(tensor);
    for (int64_t done = 0; done < count && file.status().ok(); done += kWriteBlock) {
      const auto n = static_cast<size_t>(std::min(kWriteBlock, count - done));
      const float* values = tensor.data + done;
      if (tensor.fill) {
        filled.resize(static_cast<size_t>(kWriteBlock));
        tensor.fill(done, static_cast<int64_t>(n), filled.data());
        values = filled.data();
      }
      if (tensor.dtype == DType::kF32) {
        file.Append(values, n * 4);
        continue;
      }
      ConvertFromFloat(tensor.dtype, values, block.data(), n);
      file.Append(block.data(), n * DTypeSize(tensor.dtype));
    }
  }
  return file.Commit();
}

}  // namespace lockstep
