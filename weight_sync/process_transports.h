// The transports that this process can have, by what its build, its machine and its configuration say.
#ifndef LOCKSTEP_WEIGHT_SYNC_PROCESS_TRANSPORTS_H_
#define LOCKSTEP_WEIGHT_SYNC_PROCESS_TRANSPORTS_H_

#include <string>

#include "absl/status/statusor.h"
#include "weight_sync/transport.h"

namespace lockstep {

// "gloo" always, and `name` (weight_sync.transport, "" is "gloo") where it can be had: "ipc" needs a GPU, "nccl" NCCL
// as well. UNAVAILABLE in one line, with the reason and the way out, where it cannot. "auto": those of "ipc" and "nccl"
// that can be had, if on_gpu: the process computes on a GPU. A GPU is looked for only when it is asked for: it is that
// of the run's process of this number (MakeCudaRuntimeOfProcess).
absl::StatusOr<Transports> ProcessTransports(const std::string& name, int process, bool on_gpu);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_PROCESS_TRANSPORTS_H_
