#include "learner/run_start.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/machine_memory.h"
#include "engine/base/metrics.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

// The value of the first line "name : value" of a file of /proc; empty when there is none.
std::string FieldOf(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (line.rfind(name, 0) != 0 || colon == std::string::npos) continue;
    return std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
  }
  return "";
}

Json Machine() {
  Json machine;
  machine["processor"] = FieldOf("/proc/cpuinfo", "model name");
  machine["cores"] = std::thread::hardware_concurrency();
  machine["memory_bytes"] = ReadMachineMemory().total_bytes;
  machine["gpus"] = Json::array();
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/driver/nvidia/gpus", error), end; !error && it != end;
       it.increment(error)) {
    const std::string model = FieldOf(it->path().string() + "/information", "Model");
    if (!model.empty()) machine["gpus"].push_back(model);
  }
  return machine;
}

}  // namespace

void RecordStart(const std::string& run_dir, const std::string& mode, uint64_t epoch, uint64_t step) {
  Json line;
  line["mode"] = mode;
  line["epoch"] = epoch;
  line["step"] = step;
  line["started_at"] = absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone());
  line["version"] = kLockstepVersion;
  line["machine"] = Machine();
  const std::string path = run_dir + "/starts.jsonl";
  std::ofstream file(path, std::ios::app);
  file << line.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
  file.close();
  if (!file.good()) LogWarning("cannot write ", path);
}

}  // namespace lockstep
