// What a run will take of this machine's memory, asked of the learner's program, which knows the engine.
#ifndef LOCKSTEP_CLIENT_MEMORY_CHECK_H_
#define LOCKSTEP_CLIENT_MEMORY_CHECK_H_

#include <string>

#include "absl/status/statusor.h"

namespace lockstep {

// One line: "memory: needs 19.2 GiB: ...". An error is one too. RESOURCE_EXHAUSTED: it does not fit, with what to
// change; any other: the run cannot be, whatever the memory (a model that cannot be read, no GPU, GPUs in the wrong
// number). log_path receives the program's output.
absl::StatusOr<std::string> MemoryPlanLine(const std::string& config_pbtxt, const std::string& mode,
                                           const std::string& log_path);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_MEMORY_CHECK_H_
