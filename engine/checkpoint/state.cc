#include "engine/checkpoint/state.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/process.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/checkpoint/manifest.h"
#include "engine/checkpoint/safetensors.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

constexpr char kStateFile[] = "state/trainer.safetensors";
constexpr uint64_t kSpareBytes = 16 << 20;  // config, tokenizer, headers

std::string StepName(int64_t step) { return absl::StrCat("step-", step); }

// Step of "step-N"; -1 for any other name.
int64_t StepOfName(const std::string& name) {
  if (name.rfind("step-", 0) != 0 || name.size() < 6 || name.size() > 24) return -1;
  for (size_t i = 5; i < name.size(); ++i) {
    if (name[i] < '0' || name[i] > '9') return -1;
  }
  return std::strtoll(name.c_str() + 5, nullptr, 10);
}

// Steps of the folder's checkpoints, ascending.
std::vector<int64_t> ListSteps(const std::string& checkpoints_dir) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (fs::directory_iterator it(checkpoints_dir, error), end; !error && it != end; it.increment(error)) {
    const int64_t step = StepOfName(it->path().filename().string());
    if (step >= 0) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void RemoveTree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) LogWarning("cannot remove ", path, ": ", error.message());
}

// Temporary folders whose process is gone: a learner was killed while it wrote.
void RemoveAbandoned(const std::string& checkpoints_dir) {
  std::vector<std::string> abandoned;
  std::error_code error;
  for (fs::directory_iterator it(checkpoints_dir, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const size_t at = name.rfind(".tmp.");
    if (at == std::string::npos || StepOfName(name.substr(0, at)) < 0) continue;
    const pid_t pid = std::atoi(name.c_str() + at + 5);
    if (pid == getpid() || (kill(pid, 0) != 0 && errno == ESRCH)) abandoned.push_back(it->path().string());
  }
  for (const std::string& path : abandoned) RemoveTree(path);
}

absl::Status CheckFreeSpace(const std::string& dir, const CheckpointContents& contents) {
  const ParamLayout layout(*contents.config);
  uint64_t needed =
      static_cast<uint64_t>(layout.total_size) * DTypeSize(contents.dtype) + kSpareBytes + contents.more_bytes;
  for (const StateArray& array : contents.arrays) needed += static_cast<uint64_t>(array.size) * 4;
  struct statvfs info {};
  if (statvfs(dir.c_str(), &info) != 0) return ErrnoStatus(errno, "cannot ask for the free space of", dir);
  const uint64_t available = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  if (available >= needed) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(dir, ": a checkpoint needs ", needed >> 20, " MiB, the disk has ",
                                                   available >> 20, " MiB free; free some or set run_dir elsewhere"));
}

absl::Status WriteStateFile(const std::string& dir, const CheckpointContents& contents) {
  const std::string folder = dir + "/state";
  if (mkdir(folder.c_str(), 0755) != 0) return ErrnoStatus(errno, "cannot create folder", folder);
  std::vector<SafetensorsSource> tensors;
  for (const StateArray& array : contents.arrays) {
    tensors.push_back({array.name, DType::kF32, {array.size}, array.data});
  }
  return WriteSafetensors(dir + "/" + kStateFile, tensors, contents.values);
}

absl::Status FillFolder(const std::string& dir, int64_t step, const CheckpointContents& contents) {
  if (mkdir(dir.c_str(), 0755) != 0) return ErrnoStatus(errno, "cannot create folder", dir);
  absl::Status status = WriteHfFiles(dir, *contents.config, contents.arena, contents.dtype, contents.tokenizer_dir);
  if (status.ok()) status = WriteStateFile(dir, contents);
  if (status.ok() && contents.write_more) status = contents.write_more(dir);
  if (status.ok()) status = WriteManifest(dir, step);
  if (status.ok()) status = SyncDirectory(dir);
  // Proven by reading it back before anything older is given up.
  if (status.ok()) status = VerifyManifest(dir);
  return status;
}

// Puts `temporary` in the place of `target`. If that exists, the two change places in one step, and the old one is
// then deleted under the temporary name.
absl::Status MoveInto(const std::string& temporary, const std::string& target) {
  if (access(target.c_str(), F_OK) != 0) {
    if (rename(temporary.c_str(), target.c_str()) == 0) return absl::OkStatus();
    return ErrnoStatus(errno, "cannot rename to", target);
  }
  if (renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) != 0) {
    return ErrnoStatus(errno, "cannot exchange with", target);
  }
  RemoveTree(temporary);
  return absl::OkStatus();
}

void DeleteOldest(const std::string& checkpoints_dir, int64_t newest, int keep) {
  if (keep < 0) return;
  std::vector<int64_t> steps = ListSteps(checkpoints_dir);
  steps.erase(std::remove(steps.begin(), steps.end(), newest), steps.end());
  for (size_t i = 0; i + static_cast<size_t>(keep) < steps.size(); ++i) {
    RemoveTree(checkpoints_dir + "/" + StepName(steps[i]));
  }
}

}  // namespace

absl::StatusOr<std::string> WriteCheckpoint(const std::string& checkpoints_dir, int64_t step,
                                            const CheckpointContents& contents, int keep) {
  if (mkdir(checkpoints_dir.c_str(), 0755) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, "cannot create folder", checkpoints_dir);
  }
  RemoveAbandoned(checkpoints_dir);
  if (absl::Status status = CheckFreeSpace(checkpoints_dir, contents); !status.ok()) return status;
  const std::string target = checkpoints_dir + "/" + StepName(step);
  const std::string temporary = absl::StrCat(target, ".tmp.", getpid());
  absl::Status status = FillFolder(temporary, step, contents);
  if (status.ok()) status = MoveInto(temporary, target);
  if (!status.ok()) {
    RemoveTree(temporary);
    return status;
  }
  if (status = SyncDirectory(checkpoints_dir); !status.ok()) return status;
  if (status = WriteFileAtomically(checkpoints_dir + "/latest", StepName(step) + "\n"); !status.ok()) return status;
  DeleteOldest(checkpoints_dir, step, keep);
  return target;
}

absl::Status VerifyCheckpoint(const std::string& dir) { return VerifyManifest(dir); }

absl::StatusOr<std::string> LatestCheckpoint(const std::string& checkpoints_dir) {
  std::vector<int64_t> candidates = ListSteps(checkpoints_dir);
  const auto latest = ReadFile(checkpoints_dir + "/latest", 64);
  if (latest.ok() && !latest->empty()) {
    const int64_t step = StepOfName(latest->substr(0, latest->find('\n')));
    const auto it = std::find(candidates.begin(), candidates.end(), step);
    if (it != candidates.end()) std::rotate(it, it + 1, candidates.end());  // first choice
  }
  for (; !candidates.empty(); candidates.pop_back()) {
    const std::string dir = checkpoints_dir + "/" + StepName(candidates.back());
    const absl::Status status = VerifyManifest(dir);
    if (status.ok()) return dir;
    LogWarning("passing over a checkpoint: ", std::string(status.message()));
  }
  return absl::NotFoundError(absl::StrCat(checkpoints_dir, ": has no complete checkpoint"));
}

absl::StatusOr<StateValues> LoadCheckpointState(const std::string& dir, const std::vector<StateArray>& arrays) {
  const auto file = SafetensorsFile::Open(dir + "/" + kStateFile);
  if (!file.ok()) return file.status();
  if ((*file)->tensors().size() != arrays.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat((*file)->path(), ": has ", (*file)->tensors().size(), " arrays, the trainer has ", arrays.size()));
  }
  for (const StateArray& array : arrays) {
    const SafetensorsEntry* entry = (*file)->Find(array.name);
    if (entry == nullptr || entry->dtype != "F32" || entry->shape != std::vector<int64_t>{array.size}) {
      return absl::InvalidArgumentError(absl::StrCat((*file)->path(), ": has no FP32 array \"", array.name, "\" of ",
                                                     array.size, " elements; is it a checkpoint of this model?"));
    }
    absl::Status status = (*file)->ReadFloats(*entry, 0, array.size, array.data);
    if (!status.ok()) return status;
  }
  return (*file)->metadata();
}

}  // namespace lockstep
