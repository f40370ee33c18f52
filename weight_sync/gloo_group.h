// Gloo TCP groups by Status. Gloo throws and, by default, waits 30 s; everything of ours that uses it comes in here.
//
//   GlooGroupOptions options{.rank = 1, .size = 2, .route_to = rank0_address, .timeout = absl::Seconds(10)};
//   ASSIGN(context, ConnectGlooGroup(options, *store));
//   absl::Status status = CatchGloo("all-reduce", [&] { gloo::allreduce(opts); });
//
// After any failure a context is useless to all its members: build a new one under a new store prefix.
#ifndef LOCKSTEP_WEIGHT_SYNC_GLOO_GROUP_H_
#define LOCKSTEP_WEIGHT_SYNC_GLOO_GROUP_H_

#include <gloo/context.h>
#include <gloo/rendezvous/store.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lockstep {

struct GlooGroupOptions {
  int rank = 0;
  int size = 1;
  // The local address that other members connect to; the first that is set wins, 127.0.0.1 if none is.
  std::string interface;  // "eth0"
  std::string hostname;   // "10.0.0.3"
  std::string route_to;   // "host:port" of another member: the local address from which the kernel would reach it
  // Of the connection of the full mesh, and the default of the group's collectives (BroadcastOptions::setTimeout and
  // its kin set others).
  absl::Duration timeout = absl::Seconds(30);
};

// Full mesh over TCP with the other members that use the same store prefix. DEADLINE_EXCEEDED, UNAVAILABLE or CANCELLED
// with a one-line message; never throws, never waits beyond twice the timeout (once for the store, once for sockets).
absl::StatusOr<std::shared_ptr<gloo::Context>> ConnectGlooGroup(const GlooGroupOptions& options,
                                                                gloo::rendezvous::Store& store);

// Runs `body` and turns what Gloo throws into a Status: DEADLINE_EXCEEDED for a timeout, ABORTED for a lost peer (a
// member died or closed), INTERNAL otherwise. `what` begins the message.
absl::Status CatchGloo(const std::string& what, const std::function<void()>& body);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_GLOO_GROUP_H_
