// The transports that this process can have, by what its build, its machine and its configuration say.
#ifndef LOCKSTEP_WEIGHT_SYNC_PROCESS_TRANSPORTS_H_
#define LOCKSTEP_WEIGHT_SYNC_PROCESS_TRANSPORTS_H_

#include <string>

#include "absl/status/statusor.h"
#include "weight_sync/transport.h"

namespace lockstep {

// "gloo" always, and `name` (weight_sync.transport, "" is "gloo") where it can be had: "ipc" needs a GPU, "nccl" NCCL
// as well. UNAVAILABLE in one line, with the reason and the way out, where it cannot. A GPU is looked for only when it
// is asked for: it is that of the run's process of this number (MakeCudaRuntimeOfProcess).
absl::StatusOr<Transports> ProcessTransports(const std::string& name, int process);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_PROCESS_TRANSPORTS_H_
