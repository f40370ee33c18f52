// Rendezvous of collective groups over our own control RPC: members exchange their socket addresses through a small
// key-value table that the learner's rank 0 serves (WeightSource.StoreSet / StoreGet), so no shared file and no second
// unauthenticated port exists.
//
//   rank 0:  auto table = std::make_shared<RendezvousTable>();   // serve it: RendezvousService or WeightPublisher
//            auto store = MakeLocalRendezvousStore(table, {.prefix = "allreduce-1"});
//   others:  auto store = MakeGrpcRendezvousStore(MakeChannel(rank0_address), {.prefix = "allreduce-1"});
//
// Those two are for Gloo; a GroupTable is the same for groups of another kind.
//
// Bounds: keys, value bytes and waits; a full table refuses with RESOURCE_EXHAUSTED.
#ifndef LOCKSTEP_WEIGHT_SYNC_RENDEZVOUS_STORE_H_
#define LOCKSTEP_WEIGHT_SYNC_RENDEZVOUS_STORE_H_

#include <gloo/rendezvous/store.h>
#include <grpcpp/grpcpp.h>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/mutex.h"
#include "proto/weight_sync.grpc.pb.h"

namespace lockstep {

// In-memory table with waiting readers. Thread safe.
class RendezvousTable {
 public:
  static constexpr size_t kMaxKeys = 4096;
  static constexpr size_t kMaxKeyBytes = 512;
  static constexpr size_t kMaxValueBytes = size_t{64} << 10;
  static constexpr absl::Duration kMaxWait = absl::Seconds(120);

  absl::Status Set(const std::string& key, const std::string& value) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits for the key: DEADLINE_EXCEEDED after `timeout` (at most kMaxWait), CANCELLED when `cancelled` says so (asked
  // every 100 ms) or after Close.
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout,
                                  const std::function<bool()>& cancelled = nullptr) ABSL_LOCKS_EXCLUDED(mutex_);
  void Erase(const std::string& key) ABSL_LOCKS_EXCLUDED(mutex_);
  // Forgets every key of a group, once its members are connected or have given up.
  void ErasePrefix(const std::string& prefix) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends all waits, now and later.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);
  size_t size() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, std::string> values_ ABSL_GUARDED_BY(mutex_);
};

// The two store calls of WeightSource, on a table. A learner without a WeightPublisher registers it as it is; the
// publisher's own service derives from it.
class RendezvousService : public v1::WeightSource::Service {
 public:
  explicit RendezvousService(std::shared_ptr<RendezvousTable> table) : table_(std::move(table)) {}
  grpc::Status StoreSet(grpc::ServerContext* context, const v1::StoreSetRequest* request,
                        v1::StoreSetResponse* response) override;
  grpc::Status StoreGet(grpc::ServerContext* context, const v1::StoreGetRequest* request,
                        v1::StoreGetResponse* response) override;

 private:
  std::shared_ptr<RendezvousTable> table_;
};

// The table as one group sees it: the keys under its prefix. Thread safe.
class GroupTable {
 public:
  virtual ~GroupTable() = default;
  virtual absl::Status Set(const std::string& key, const std::string& value, absl::Time deadline) = 0;
  // Waits for the key: DEADLINE_EXCEEDED, or CANCELLED soon after `cancelled` says so; it may be empty.
  virtual absl::StatusOr<std::string> Get(const std::string& key, absl::Time deadline,
                                          const std::function<bool()>& cancelled) = 0;
  // Where the table lies (rank 0), so that a group may use more keys than the table holds. Elsewhere it does nothing.
  virtual void Erase(const std::string& key) = 0;
};
// The prefix is unique to the group and never used twice.
std::shared_ptr<GroupTable> MakeLocalGroupTable(std::shared_ptr<RendezvousTable> table, const std::string& prefix);
std::shared_ptr<GroupTable> MakeGrpcGroupTable(std::shared_ptr<grpc::Channel> channel, const std::string& prefix);

struct RendezvousOptions {
  std::string prefix = "";                     // unique to the group; never used twice
  absl::Duration timeout = absl::Seconds(30);  // of all calls of the store together, from its construction
  std::function<bool()> cancelled = nullptr;   // asked several times a second; may be empty
};

// Stores for ConnectGlooGroup. `options.prefix` is the table's own where there is one. Their calls throw
// gloo::IoException on failure, as Gloo expects of a store.
std::unique_ptr<gloo::rendezvous::Store> MakeGrpcRendezvousStore(std::shared_ptr<grpc::Channel> channel,
                                                                 RendezvousOptions options);
std::unique_ptr<gloo::rendezvous::Store> MakeLocalRendezvousStore(std::shared_ptr<RendezvousTable> table,
                                                                  RendezvousOptions options);
std::unique_ptr<gloo::rendezvous::Store> MakeRendezvousStore(std::shared_ptr<GroupTable> table,
                                                             RendezvousOptions options);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_RENDEZVOUS_STORE_H_
