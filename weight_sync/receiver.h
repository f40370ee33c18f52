// The receiving end of weight updates, in a rollout server: shadow, verify, flip. docs/weight_sync.md is the protocol.
#ifndef LOCKSTEP_WEIGHT_SYNC_RECEIVER_H_
#define LOCKSTEP_WEIGHT_SYNC_RECEIVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/model/weight_set.h"
#include "proto/weight_sync.grpc.pb.h"
#include "weight_sync/shadow.h"
#include "weight_sync/transport.h"

namespace lockstep {

class MetricsRegistry;

// Called at Commit with the complete, verified set: a Weights, or what `device_shadow` released. Makes it current
// between two decode steps, treats samples in flight by `in_flight` (RunConfig weight_sync.in_flight), and returns the
// seconds for which decoding stood still.
using FlipWeights =
    std::function<absl::StatusOr<double>(std::shared_ptr<const WeightSet> weights, const std::string& in_flight)>;

struct WeightReceiverOptions {
  ModelConfig config;
  DType dtype = DType::kF16;
  // (epoch, version) of the weights that the process started with; updates must be greater.
  uint64_t initial_epoch = 0;
  uint64_t initial_version = 0;
  Transports transports = GlooOnly();
  // Where updates by a transport that fills device memory go; null: there as well to the host, as all others do.
  MakeShadow device_shadow = nullptr;
  MetricsRegistry* metrics = nullptr;  // outlives the receiver; may be null
};

// The gRPC service to register on the server. Thread safe; at most one update at a time.
std::unique_ptr<v1::WeightReceiver::Service> MakeWeightReceiver(const WeightReceiverOptions& options, FlipWeights flip);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_RECEIVER_H_
