// Which GPU each process of a run uses, and whether NCCL and CUDA IPC can work between them: known before anything is
// started, and otherwise an error of the first update.
#ifndef LOCKSTEP_LEARNER_DEVICE_PLACEMENT_H_
#define LOCKSTEP_LEARNER_DEVICE_PLACEMENT_H_

#include <vector>

#include "absl/status/status.h"
#include "proto/run_config.pb.h"

namespace lockstep {

// Visible devices by rank and by server. Those of processes that are started elsewhere, or use none, are not here.
struct DevicePlacement {
  std::vector<int> ranks = {}, servers = {};
  bool updates = false;         // rank 0 sends weights to the servers, by weight_sync.transport
  bool ranks_use_nccl = false;  // gradients are summed by it
};

// FAILED_PRECONDITION in one line: two members of a NCCL group on one GPU, or members of an IPC group on two.
absl::Status CheckPlacement(const DevicePlacement& placement, const v1::RunConfig& config);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_DEVICE_PLACEMENT_H_
