// weight_sync.transport "auto": which transport an update takes, by what its ends say of themselves.
#ifndef LOCKSTEP_WEIGHT_SYNC_TRANSPORT_CHOICE_H_
#define LOCKSTEP_WEIGHT_SYNC_TRANSPORT_CHOICE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "weight_sync/transport.h"
#include "weight_sync/update_run.h"

namespace lockstep {

// The learner or a server.
struct TransportEnd {
  std::string who;  // "the learner", "10.0.0.2:7000"
  std::vector<std::string> transports;
  std::string host;    // member_identity.h
  std::string bus_id;  // of its GPU; "": it has none
};
// Of this process.
TransportEnd DescribeThis(const std::string& who, const Transports& transports);
// Asks all servers at once. Those that do not answer in time are left out: the update will find out about them.
std::vector<TransportEnd> DescribeServers(const std::vector<std::shared_ptr<ServerPeer>>& peers,
                                          absl::Duration timeout);

struct TransportChoice {
  std::string name;
  std::string why;  // for the log
};
// "ipc" where learner and servers share one GPU, "nccl" where each has its own, both where all of them have that
// transport; else "gloo". Without servers: what keeps the snapshot on the learner's device, if it has one.
TransportChoice ChooseTransport(const TransportEnd& learner, const std::vector<TransportEnd>& servers);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_TRANSPORT_CHOICE_H_
