#include "engine/base/machine_memory.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

namespace lockstep {
namespace {

// Version 1 says "no limit" with a number near 2^63.
constexpr uint64_t kNoLimit = uint64_t{1} << 60;

// The number behind `key` in lines of "key number" or "key: number kB".
std::optional<uint64_t> Field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    uint64_t value = 0;
    if (words >> name >> value && (name == key || name == key + ":")) return value;
  }
  return std::nullopt;
}

// A file that holds one number; "max" is none.
std::optional<uint64_t> Number(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (!(file >> value) || value >= kNoLimit) return std::nullopt;
  return value;
}

struct GroupFiles {
  const char* limit;
  const char* usage;
  const char* reclaimable;  // key of memory.stat
};
constexpr GroupFiles kVersion2 = {"/memory.max", "/memory.current", "inactive_file"};
constexpr GroupFiles kVersion1 = {"/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file"};

void LimitByGroup(const std::string& group, const GroupFiles& files, MachineMemory* memory) {
  const auto limit = Number(group + files.limit);
  if (!limit) return;
  const uint64_t usage = Number(group + files.usage).value_or(0);
  const uint64_t reclaimable = Field(group + "/memory.stat", files.reclaimable).value_or(0);
  const uint64_t held = usage - std::min(usage, reclaimable);
  const uint64_t left = *limit - std::min(*limit, held);
  memory->total_bytes = std::min(memory->total_bytes, *limit);
  if (left < memory->available_bytes) {
    memory->available_bytes = left;
    memory->limited_by_cgroup = true;
  }
}

// The group and everything above it.
void LimitByPath(const std::string& mount, std::string path, const GroupFiles& files, MachineMemory* memory) {
  while (true) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    LimitByGroup(mount + path, files, memory);
    if (path.empty()) return;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

}  // namespace

MachineMemory ReadMachineMemory(const std::string& root) {
  MachineMemory memory;
  const std::string meminfo = root + "/proc/meminfo";
  memory.total_bytes = Field(meminfo, "MemTotal").value_or(0) << 10;
  memory.available_bytes = Field(meminfo, "MemAvailable").value_or(0) << 10;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/path" or "7:cpu,memory:/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") LimitByPath(root + "/sys/fs/cgroup", path, kVersion2, &memory);
    if (controllers.find(",memory,") != std::string::npos) {
      LimitByPath(root + "/sys/fs/cgroup/memory", path, kVersion1, &memory);
    }
  }
  return memory;
}

}  // namespace lockstep
