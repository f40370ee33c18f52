// Pools and processes of a memory plan (memory_plan.h, device_plan.h), and how they are written.
#ifndef LOCKSTEP_LEARNER_PROCESS_MEMORY_H_
#define LOCKSTEP_LEARNER_PROCESS_MEMORY_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace lockstep {

struct MemoryPool {
  std::string name;
  uint64_t bytes = 0;
};

// Processes of one kind; each takes the sum of the pools at its peak.
struct ProcessMemory {
  std::string name;  // "learner", "rollout server"
  uint32_t count = 1;
  std::vector<MemoryPool> pools;
  uint64_t bytes() const;
};

uint64_t TotalBytes(const std::vector<ProcessMemory>& processes);
// "15.1" of 15.1 GiB.
std::string GiBText(uint64_t bytes);
// "learner 15.1 (weights 0.9, master 1.8, ...), 2 rollout servers of 2.0 (...)", in GiB.
std::string ProcessesText(const std::vector<ProcessMemory>& processes);
// [{"name", "count", "bytes", "pools": {...}}], in bytes.
nlohmann::ordered_json ProcessesJson(const std::vector<ProcessMemory>& processes);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_PROCESS_MEMORY_H_
