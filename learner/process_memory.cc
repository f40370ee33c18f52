#include "learner/process_memory.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lockstep {

uint64_t ProcessMemory::bytes() const {
  uint64_t total = 0;
  for (const MemoryPool& pool : pools) total += pool.bytes;
  return total;
}

uint64_t TotalBytes(const std::vector<ProcessMemory>& processes) {
  uint64_t total = 0;
  for (const ProcessMemory& process : processes) total += process.count * process.bytes();
  return total;
}

std::string GiBText(uint64_t bytes) { return absl::StrFormat("%.1f", static_cast<double>(bytes) / (1 << 30)); }

std::string ProcessesText(const std::vector<ProcessMemory>& processes) {
  std::string text;
  for (size_t i = 0; i < processes.size(); ++i) {
    const ProcessMemory& process = processes[i];
    absl::StrAppend(&text, i == 0 ? "" : ", ");
    if (process.count == 1) {
      absl::StrAppend(&text, process.name, " ", GiBText(process.bytes()), " (");
    } else {
      absl::StrAppend(&text, process.count, " ", process.name, "s of ", GiBText(process.bytes()), " (");
    }
    bool first = true;
    for (const MemoryPool& pool : process.pools) {
      absl::StrAppend(&text, first ? "" : ", ", pool.name, " ", GiBText(pool.bytes));
      first = false;
    }
    absl::StrAppend(&text, ")");
  }
  return text;
}

nlohmann::ordered_json ProcessesJson(const std::vector<ProcessMemory>& processes) {
  auto list = nlohmann::ordered_json::array();
  for (const ProcessMemory& process : processes) {
    nlohmann::ordered_json entry = {{"name", process.name}, {"count", process.count}, {"bytes", process.bytes()}};
    for (const MemoryPool& pool : process.pools) entry["pools"][pool.name] = pool.bytes;
    list.push_back(entry);
  }
  return list;
}

}  // namespace lockstep
