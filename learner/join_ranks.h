// How the ranks of a learner find each other.
#ifndef LOCKSTEP_LEARNER_JOIN_RANKS_H_
#define LOCKSTEP_LEARNER_JOIN_RANKS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "learner/collectives.h"
#include "proto/run_config.pb.h"

namespace lockstep {

// Whether JoinRanks of this configuration takes NCCL. Loads it, to know.
bool RanksUseNccl(const v1::RunConfig& config);

// All ranks call it at about the same time: one rank needs nobody; ranks on CPUs sum over TCP (Gloo); ranks on GPUs by
// NCCL, or, where this build or machine has no NCCL, through their hosts, which a line in the log says. process: number
// of this one among the run's on this machine.
absl::StatusOr<std::unique_ptr<Collectives>> JoinRanks(const v1::RunConfig& config, int rank,
                                                       const std::string& rank0_address, int process);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_JOIN_RANKS_H_
