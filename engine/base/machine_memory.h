// How much memory this process may use: the machine's, or its control group's where that is less.
#ifndef LOCKSTEP_ENGINE_BASE_MACHINE_MEMORY_H_
#define LOCKSTEP_ENGINE_BASE_MACHINE_MEMORY_H_

#include <cstdint>
#include <string>

namespace lockstep {

struct MachineMemory {
  uint64_t total_bytes = 0;
  // What can be taken without swapping: MemAvailable, or what is left of the group's limit (its reclaimable page cache
  // counts as free).
  uint64_t available_bytes = 0;
  bool limited_by_cgroup = false;
};

// Reads /proc/meminfo, /proc/self/cgroup and the groups' files (version 2 and 1) under `root`, which is for tests. A
// file that is not there limits nothing; without /proc/meminfo both numbers are 0, which means unknown.
MachineMemory ReadMachineMemory(const std::string& root = "");

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_MACHINE_MEMORY_H_
