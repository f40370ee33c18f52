#include "engine/checkpoint/manifest.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/base/digest.h"
#include "engine/base/json.h"
#include "engine/base/process.h"

namespace lockstep {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr char kManifestName[] = "manifest.json";
constexpr int kFormatVersion = 1;
constexpr size_t kBlockBytes = 1 << 20;
constexpr uint64_t kMaxManifestBytes = 4 << 20;

struct FileDigest {
  uint64_t bytes = 0;
  uint64_t digest = 0;  // chained over blocks of 1 MiB, each with the digest so far as its seed
};

absl::StatusOr<FileDigest> DigestFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "cannot open", path);
  std::vector<char> block(kBlockBytes);
  FileDigest result;
  while (true) {
    size_t filled = 0;
    ssize_t n = 0;
    while (filled < kBlockBytes && (n = read(fd, block.data() + filled, kBlockBytes - filled)) > 0) {
      filled += static_cast<size_t>(n);
    }
    if (n < 0) {
      const int error = errno;
      close(fd);
      return ErrnoStatus(error, "cannot read", path);
    }
    result.bytes += filled;
    if (filled > 0) result.digest = Digest(block.data(), filled, result.digest);
    if (filled < kBlockBytes) break;
  }
  close(fd);
  return result;
}

std::string ListDigest(const json& manifest) {
  json list = manifest;
  list.erase("digest");
  const std::string text = list.dump();
  return DigestHex(Digest(text.data(), text.size()));
}

absl::Status Lost(const std::string& path, const std::string& message) {
  return absl::DataLossError(absl::StrCat(path, ": ", message));
}

}  // namespace

absl::Status WriteManifest(const std::string& dir, int64_t step) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::recursive_directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    if (it->is_regular_file()) names.push_back(fs::relative(it->path(), dir).string());
  }
  if (error) return absl::UnavailableError(absl::StrCat("cannot list ", dir, ": ", error.message()));
  std::sort(names.begin(), names.end());
  json manifest = {{"format", kFormatVersion}, {"step", step}, {"files", json::array()}};
  for (const std::string& name : names) {
    const auto file = DigestFile(dir + "/" + name);
    if (!file.ok()) return file.status();
    manifest["files"].push_back({{"name", name}, {"bytes", file->bytes}, {"digest", DigestHex(file->digest)}});
  }
  manifest["digest"] = ListDigest(manifest);
  return WriteFileAtomically(dir + "/" + kManifestName, manifest.dump(1) + "\n");
}

absl::Status VerifyManifest(const std::string& dir) {
  const std::string path = dir + "/" + kManifestName;
  const auto text = ReadFile(path, kMaxManifestBytes);
  if (!text.ok()) return Lost(dir, "has no readable manifest.json, so it is no complete checkpoint");
  const auto manifest = ParseJson(*text, path);
  if (!manifest.ok()) return Lost(path, "is damaged");
  if (!manifest->is_object() || manifest->value("digest", json()) != ListDigest(*manifest)) {
    return Lost(path, "is damaged: its digest does not match its content");
  }
  // The digest matched: from here on the content is what WriteManifest wrote, or another version of it.
  if (manifest->value("format", json()) != kFormatVersion || !(*manifest)["files"].is_array()) {
    return Lost(path, absl::StrCat("has a format other than ", kFormatVersion));
  }
  for (const json& file : (*manifest)["files"]) {
    const auto name = JsonString(file, "name", "", path);
    const auto bytes = JsonInt(file, "bytes", 0, 0, INT64_MAX, path);
    const auto digest = JsonString(file, "digest", "", path);
    if (!name.ok() || !bytes.ok() || !digest.ok()) return Lost(path, "has an entry of another form");
    const auto actual = DigestFile(dir + "/" + *name);
    if (!actual.ok()) return Lost(dir + "/" + *name, "is missing or cannot be read");
    if (actual->bytes != static_cast<uint64_t>(*bytes)) {
      return Lost(dir + "/" + *name, absl::StrCat("has ", actual->bytes, " bytes, the manifest says ", *bytes));
    }
    if (DigestHex(actual->digest) != *digest) {
      return Lost(dir + "/" + *name, absl::StrCat("has digest ", DigestHex(actual->digest), ", the manifest says ",
                                                  *digest, "; the file was damaged or changed"));
    }
  }
  return absl::OkStatus();
}

}  // namespace lockstep
