// The safetensors header: any bytes are refused in one line or give entries that lie inside the data.
// fuzz sources: engine/checkpoint/safetensors.cc engine/base/json.cc engine/base/process.cc engine/tensor/dtype.cc
// fuzz seeds: tests/fuzz/seeds/safetensors/*
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "engine/checkpoint/safetensors.h"

namespace {

void Require(bool condition) {
  if (!condition) abort();
}

// The input is a whole file: length, header, data.
void CheckFile(const uint8_t* data, size_t size) {
  static const std::string path = "/tmp/lockstep_safetensors_fuzz." + std::to_string(getpid());
  FILE* file = fopen(path.c_str(), "wb");
  if (file == nullptr) return;
  fwrite(data, 1, size, file);
  fclose(file);
  const auto opened = lockstep::SafetensorsFile::Open(path);
  if (!opened.ok()) {
    Require(opened.status().message().find('\n') == std::string_view::npos);
    return;
  }
  for (const auto& [name, entry] : (*opened)->tensors()) {
    Require(entry.begin <= entry.end && entry.end <= size);
    std::string floats(std::min<int64_t>(entry.num_elements, 100) * 4, '\0');
    const auto count = static_cast<int64_t>(floats.size() / 4);
    const absl::Status status =
        (*opened)->ReadFloats(entry, entry.num_elements - count, count, reinterpret_cast<float*>(floats.data()));
    Require(status.ok() == (entry.dtype == "F32" || entry.dtype == "F16" || entry.dtype == "BF16"));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The header alone, before a data section of the size that its first two bytes name.
  if (size >= 2) {
    uint16_t data_bytes = 0;
    std::memcpy(&data_bytes, data, 2);
    std::map<std::string, lockstep::SafetensorsEntry> tensors;
    std::map<std::string, std::string> metadata;
    const std::string_view header(reinterpret_cast<const char*>(data) + 2, size - 2);
    const absl::Status status = lockstep::ParseSafetensorsHeader(header, data_bytes, "file", &tensors, &metadata);
    uint64_t covered = 0;
    for (const auto& [name, entry] : tensors) covered += entry.end - entry.begin;
    if (status.ok()) Require(covered == data_bytes);
    if (!status.ok()) Require(status.message().find('\n') == std::string_view::npos);
  }
  CheckFile(data, size);
  return 0;
}
