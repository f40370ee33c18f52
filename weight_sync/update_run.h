// One Publish: carries out what the sender machine decides. Calls to the servers run on gRPC's threads, the transfer on
// an own one; all they do is to put events into one queue, which Run works off.
#ifndef LOCKSTEP_WEIGHT_SYNC_UPDATE_RUN_H_
#define LOCKSTEP_WEIGHT_SYNC_UPDATE_RUN_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/weight_sync.grpc.pb.h"
#include "weight_sync/publisher.h"
#include "weight_sync/rendezvous_store.h"
#include "weight_sync/transport.h"
#include "weight_sync/update_machine.h"
#include "weight_sync/weight_snapshot.h"

namespace lockstep {

// Two connections to a server: a slow answer on one does not hold up an Abort or a Commit on the other.
struct ServerPeer {
  std::string address;
  std::unique_ptr<v1::WeightReceiver::Stub> update;   // Begin, Receive, Pull
  std::unique_ptr<v1::WeightReceiver::Stub> control;  // Commit, Abort
};
std::shared_ptr<ServerPeer> MakeServerPeer(const std::string& address);

struct KeptMembers {
  std::string group;  // "": none
  std::vector<std::string> addresses;
};

struct UpdateRunOptions {
  std::shared_ptr<const WeightSnapshot> snapshot;
  std::vector<std::shared_ptr<ServerPeer>> peers;
  std::shared_ptr<RendezvousTable> store;
  std::string source_address;
  std::string in_flight;
  std::string transport_name = "gloo";
  TransportKind transport = {MakeGlooTransport};
  // The group of the last run that may be used again: its name, and the addresses of its ranks from 1 on.
  KeptMembers kept;
  absl::Duration budget;
  uint32_t first_attempt = 1;  // kMaxAttempts numbers from here belong to this run
};

struct UpdateOutcome {
  UpdateReport report;
  std::vector<bool> quarantined;  // a server each
  int digest_mismatches = 0;      // buckets
  int buckets_sent = 0;
  double begin_seconds = 0;
  double commit_seconds = 0;
  KeptMembers kept;  // for the next run
};

// Returns within budget + kAbortGrace.
UpdateOutcome RunUpdate(UpdateRunOptions options);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_UPDATE_RUN_H_
