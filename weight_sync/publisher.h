// The sending end of weight updates, in the learner's rank 0.
#ifndef LOCKSTEP_WEIGHT_SYNC_PUBLISHER_H_
#define LOCKSTEP_WEIGHT_SYNC_PUBLISHER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/model.h"
#include "proto/run_config.pb.h"
#include "proto/weight_sync.grpc.pb.h"
#include "weight_sync/device_params.h"
#include "weight_sync/rendezvous_store.h"
#include "weight_sync/transport.h"

namespace lockstep {

class MetricsRegistry;

struct ServerUpdate {
  std::string address;
  // UNAVAILABLE, DEADLINE_EXCEEDED: dead or stopped. FAILED_PRECONDITION: a learner with a newer epoch is in charge,
  // this one must exit. INVALID_ARGUMENT: the server holds another model or dtype. DATA_LOSS: quarantined after two
  // digest mismatches. Messages are the failing side's own.
  absl::Status status;  // not OK: the server is stale or dead, and out of rotation until CatchUp succeeds
  double pause_seconds = 0;
};

struct UpdateReport {
  uint64_t epoch = 0;
  uint64_t version = 0;
  uint64_t bytes = 0;  // of one copy of the weights
  double seconds = 0;  // begin .. last commit
  double transfer_seconds = 0;
  std::vector<ServerUpdate> servers;
};

struct WeightPublisherOptions {
  ModelConfig config;
  DType dtype = DType::kF16;  // of the rollout servers
  v1::WeightSyncConfig sync;
  uint64_t bucket_bytes = 0;                         // 0: as sync.bucket_mib says (BucketBytes)
  std::shared_ptr<RendezvousTable> store = nullptr;  // the table that service() serves, to share it with the learner's
                                                     // collectives; null: an own one
  // sync.transport is one of them, or "auto": then each update takes what suits its ends (transport_choice.h). "":
  // "gloo".
  Transports transports = GlooOnly();
  MetricsRegistry* metrics = nullptr;  // outlives the publisher; may be null
};

class WeightPublisher {
 public:
  virtual ~WeightPublisher() = default;

  // Service to register on the learner's gRPC server: Fetch and the rendezvous store. Owned by the publisher.
  virtual v1::WeightSource::Service* service() = 0;
  // Address at which service() is reachable for the rollout servers; set once before the first Publish.
  virtual void SetSourceAddress(const std::string& address) = 0;

  // Rounds the master weights to the rollout dtype and brings every address to (epoch, version). Never waits beyond
  // sync.timeout_seconds (+ one second for the abort). OK when at least one server committed, or when `addresses` is
  // empty; per-server outcomes are in the report. Failed servers keep their old version whole. When none committed: the
  // code of the most telling failure, FAILED_PRECONDITION first.
  virtual absl::StatusOr<UpdateReport> Publish(uint64_t epoch, uint64_t version, const PublishSource& source,
                                               const std::vector<std::string>& addresses) = 0;
  // Brings one late or returned server to the last published version, by a point-to-point pull. Also ends its
  // quarantine. May run while Publish does.
  virtual absl::Status CatchUp(const std::string& address) = 0;
};

std::unique_ptr<WeightPublisher> MakeWeightPublisher(const WeightPublisherOptions& options);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_PUBLISHER_H_
