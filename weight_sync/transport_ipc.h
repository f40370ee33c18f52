// Learner and rollout servers on one GPU: the receivers open the sender's device memory (CUDA IPC) and copy from device
// to device. No byte crosses a bus, unless the memory that is sent or filled is the host's.
//
// What they tell each other goes through the group's table, that is over the control plane: for bucket n where it lies
// ("bucket/n": the handle of an allocation and the offset in it), and from every receiver that it has its copy
// ("taken/n/rank"). Receive returns when the bytes are in place. There are two ways to offer a bucket:
//
// - It lies in an image of CommDevice, the snapshot of a whole set (device_snapshot.h): it is offered itself. The bytes
//   are there already; the sender is a few buckets ahead of the slowest receiver, and Finish waits for the last ones,
//   so that the image is not filled again before all have what was in it.
// - All other memory is copied into one of two slots; a slot is filled again when all have taken what was in it. Send
//   returns when its own copy is done.
//
// What a receiver has opened stays open for the next update (opened_handles.h), and so does the knowledge that all
// members are on one GPU (kept_group.h). Images and slots belong to the process and are never freed while it uses
// transports: a receiver of an update that has failed may still read from one, into a shadow that is dropped.
#ifndef LOCKSTEP_WEIGHT_SYNC_TRANSPORT_IPC_H_
#define LOCKSTEP_WEIGHT_SYNC_TRANSPORT_IPC_H_

#include <memory>

#include "weight_sync/comm_device.h"
#include "weight_sync/kept_group.h"
#include "weight_sync/transport.h"

namespace lockstep {

std::unique_ptr<WeightTransport> MakeIpcTransport(std::shared_ptr<CommDevice> device, std::shared_ptr<GroupTable> table,
                                                  std::shared_ptr<KeptSlot> slot = nullptr);
TransportKind IpcKind(std::shared_ptr<CommDevice> device);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_TRANSPORT_IPC_H_
