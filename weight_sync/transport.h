// How a bucket's bytes get from the sender (rank 0) to the members of a group. Four calls, each with a deadline; each
// fails by Status and never by hanging.
//
//   "gloo"  TCP, host memory (transport_gloo.cc)
//   "nccl"  GPUs of one or several machines, a GPU each (transport_nccl.h)
//   "ipc"   learner and servers share one GPU (transport_ipc.h)
//
// One thread joins and then sends or receives; Close may come from any thread at any time, and makes the other calls
// return CANCELLED soon. After any failure, or Close, the object is used up: form a new group under a new prefix.
#ifndef LOCKSTEP_WEIGHT_SYNC_TRANSPORT_H_
#define LOCKSTEP_WEIGHT_SYNC_TRANSPORT_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {

struct CommDevice;

struct TransportGroup {
  int rank = 0;
  int size = 1;
  std::string route_to = "";  // "host:port" of a peer: tells which local address the others can reach
  std::string name = "";      // of a new group: never used twice; "": it is not kept
  std::string kept = "";      // of the kept group that is to be used again (kept_group.h); "": a new one is formed
};

// For the connection of the group. A member that died before it joined is seen by this, or by its control call.
inline constexpr absl::Duration kJoinTimeout = absl::Seconds(10);

class WeightTransport {
 public:
  virtual ~WeightTransport() = default;

  // How long Join may take where all goes well.
  virtual absl::Duration join_timeout() const { return kJoinTimeout; }

  // Returns once every member is connected. ABORTED: the kept group that is asked for is not here.
  virtual absl::Status Join(const TransportGroup& group, absl::Time deadline) = 0;
  // Rank 0: the bytes to every member. Buckets go in order; bucket numbers are the same on both sides.
  virtual absl::Status Send(uint64_t bucket, const void* data, uint64_t bytes, absl::Time deadline) = 0;
  // Rank 0, after the last bucket: returns once every member has what was sent, where the transport can tell.
  virtual absl::Status Finish(absl::Time) { return absl::OkStatus(); }
  // Other ranks. On an error the destination may be overwritten in part.
  virtual absl::Status Receive(uint64_t bucket, void* data, uint64_t bytes, absl::Time deadline) = 0;
  // Idempotent.
  virtual void Close() = 0;
  // Instead of Close, once all buckets are through and no thread is inside: the group may be used again.
  virtual void Keep() { Close(); }
};

// A transport of a new group, whose members meet in the table. Its waits end by Join's deadline and by Close.
using MakeTransport = std::function<std::unique_ptr<WeightTransport>(std::shared_ptr<GroupTable>)>;
struct TransportKind {
  MakeTransport make;
  // Whose memory it sends and fills in place, beside that of the host; null: that of the host only.
  std::shared_ptr<CommDevice> device = nullptr;
  // The name of the group that this process keeps and can use again, "" where there is none; null: it never keeps one.
  std::function<std::string()> kept = nullptr;
};
// What a process can do, by the names of weight_sync.transport.
using Transports = std::map<std::string, TransportKind>;
std::string TransportNames(const Transports& transports);  // "gloo, nccl"

std::unique_ptr<WeightTransport> MakeGlooTransport(std::shared_ptr<GroupTable> table);
Transports GlooOnly();

// When a bucket must be over: bytes at kExpectedBytesPerSecond with a safety factor, and a constant; never later than
// the update's own deadline. A lost root is seen only by this (docs/weight_sync.md), so it is short.
inline constexpr double kExpectedBytesPerSecond = 200e6;
inline constexpr double kBucketSafety = 4;
inline constexpr absl::Duration kBucketConstant = absl::Seconds(2);
inline constexpr int kMaxGroupSize = 1024;
absl::Time JoinDeadline(const WeightTransport& transport, absl::Time now, absl::Time update_deadline);
absl::Time BucketDeadline(uint64_t bytes, absl::Time now, absl::Time update_deadline);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_TRANSPORT_H_
