// The calls of collectives.h by NCCL, a GPU for each rank.
//
// What is summed where: NCCL chooses ring, tree or the switch by topology and size, and with it the order of a sum. It
// is not the order of ranks. What it gives: every rank has the same bits (each element is reduced once and copied), and
// the same group on the same machines with the same sizes gives the same bits again. A group of another size, another
// topology or another NCCL gives other ones. NCCL_ALGO=Ring in the environment of all ranks fixes the algorithm, as far
// as NCCL promises; Gloo's ring order is not reproduced.
//
// Data may lie on the device (in place) or on the host (through a piece of device memory, kStagedPiece at a time).
//
// A rank that fails says so in rank 0's table; the others look there once a second while they wait, and fail with its
// words. A rank that dies is seen by the deadline of the call; rank 0's death within about two seconds, since its table
// is gone with it. Every failure aborts the communicator, and the object is of no more use.
#ifndef LOCKSTEP_LEARNER_COLLECTIVES_NCCL_H_
#define LOCKSTEP_LEARNER_COLLECTIVES_NCCL_H_

#include <memory>
#include <string>

#include "learner/collectives.h"
#include "weight_sync/comm_device.h"

namespace lockstep {

inline constexpr int64_t kStagedPiece = int64_t{32} << 20;  // bytes

struct NcclCollectivesOptions {
  int rank = 0;
  int world_size = 1;
  std::shared_ptr<CommDevice> device;
  std::string rank0_address;  // host:port that serves WeightSource.StoreSet / StoreGet
  std::string prefix;         // unique to this group of ranks on that store
  absl::Duration connect_timeout = absl::Seconds(60);
};

// All ranks call it at about the same time. FAILED_PRECONDITION in one line where two of them are on one GPU.
absl::StatusOr<std::unique_ptr<Collectives>> MakeNcclCollectives(const NcclCollectivesOptions& options);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_COLLECTIVES_NCCL_H_
