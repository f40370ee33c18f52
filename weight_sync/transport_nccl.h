// Buckets by ncclBroadcast, from GPU to GPU, each member on one of its own. Groups on one GPU are refused in one line
// (member_identity.h): use transport_ipc.h there.
//
// Memory on the device is sent and filled in place. Memory of the host goes through a bucket on the device: the sender
// copies it there before the broadcast, a receiver copies it back after it; the bucket is kept for the next update.
//
// A communicator in which nothing failed is kept for the next update (kept_group.h). The sender's and the receivers'
// Close abort it at once. That cuts nobody off: by the protocol a member closes when all have reported their buckets,
// or when the update has failed.
#ifndef LOCKSTEP_WEIGHT_SYNC_TRANSPORT_NCCL_H_
#define LOCKSTEP_WEIGHT_SYNC_TRANSPORT_NCCL_H_

#include <memory>

#include "weight_sync/comm_device.h"
#include "weight_sync/kept_group.h"
#include "weight_sync/transport.h"

namespace lockstep {

// NCCL looks at the machine's topology and loads its kernels at the first group.
inline constexpr absl::Duration kNcclJoinTimeout = absl::Seconds(20);

std::unique_ptr<WeightTransport> MakeNcclTransport(std::shared_ptr<CommDevice> device,
                                                   std::shared_ptr<GroupTable> table,
                                                   std::shared_ptr<KeptSlot> slot = nullptr);
// Its transports keep their communicator from update to update.
TransportKind NcclKind(std::shared_ptr<CommDevice> device);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_TRANSPORT_NCCL_H_
