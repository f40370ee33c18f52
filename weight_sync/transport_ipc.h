// Learner and rollout servers on one GPU: the sender copies a bucket into one of two slots of its own device memory,
// the receivers open the slot (CUDA IPC) and copy from device to device. No byte crosses a bus, unless the memory that
// is sent or filled is the host's.
//
// What they tell each other goes through the group's table, that is over the control plane: for bucket n the handles of
// the slot's memory and event ("bucket/n"), and from every receiver that it has its copy ("taken/n/rank"). Slot n mod 2
// is filled again when all have taken bucket n - 2. Send returns when its own copy is done, Receive when the bytes are
// in place.
//
// Slots belong to the process and are never freed while it uses transports: a receiver of an update that has failed may
// still read from one, into a shadow that is dropped.
#ifndef LOCKSTEP_WEIGHT_SYNC_TRANSPORT_IPC_H_
#define LOCKSTEP_WEIGHT_SYNC_TRANSPORT_IPC_H_

#include <memory>

#include "weight_sync/comm_device.h"
#include "weight_sync/transport.h"

namespace lockstep {

std::unique_ptr<WeightTransport> MakeIpcTransport(std::shared_ptr<CommDevice> device,
                                                  std::shared_ptr<GroupTable> table);
TransportKind IpcKind(std::shared_ptr<CommDevice> device);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_TRANSPORT_IPC_H_
