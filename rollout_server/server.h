// A rollout server, wired: engine, decode loop, Rollout and WeightReceiver services, health, reflection, metrics.
#ifndef LOCKSTEP_ROLLOUT_SERVER_SERVER_H_
#define LOCKSTEP_ROLLOUT_SERVER_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base/metrics.h"
#include "engine/model/model.h"
#include "proto/channel.h"
#include "proto/rollout.grpc.pb.h"
#include "proto/weight_sync.grpc.pb.h"
#include "rollout_server/rollout_service.h"
#include "rollout_server/text_service.h"
#include "weight_sync/transport.h"

namespace lockstep {

// Health service names besides "" (the process): whether new groups are admitted.
inline constexpr char kReadinessName[] = "readiness";
inline constexpr char kRolloutServiceName[] = "lockstep.v1.Rollout";
// A weight switch waits for the engine step under way; one that takes longer than this is stuck.
inline constexpr double kFlipTimeoutSeconds = 60;

struct RolloutServerOptions {
  std::string bind = "127.0.0.1";
  int port = 0;
  int metrics_port = -1;  // -1: none
  SchedulerLimits limits;
  uint32_t max_groups_in_flight = 1;  // credits of a stream
  double stall_limit_seconds = 60;
  std::string numerics = "matched";
  Transports transports = GlooOnly();          // of weight updates
  std::shared_ptr<const Tokenizer> tokenizer;  // null: no TextTokenizer service
  std::function<void()> on_drain;              // after a Drain call has stopped admission
  // The backend has failed: nothing can be computed any more.
  std::function<void(const absl::Status&)> on_failure;
};

class RolloutServer {
 public:
  // Serves at once. Errors of StepBackend::Prepare too.
  static absl::StatusOr<std::unique_ptr<RolloutServer>> Start(const RolloutServerOptions& options,
                                                              std::unique_ptr<StepBackend> backend,
                                                              std::shared_ptr<const WeightSet> weights);
  // Cancels what is still in flight.
  ~RolloutServer();

  // Readiness off, no admissions; waits until all samples are out and all streams have ended. False: `grace` was over
  // before; what is left ends as cancelled, to be issued again elsewhere.
  bool Drain(absl::Duration grace);

  const std::string& address() const { return listening_.address; }
  const std::string& metrics_address() const { return metrics_address_; }
  DecodeLoop& loop() { return *loop_; }
  std::string ScrapeMetrics() const { return registry_.Scrape(); }

 private:
  RolloutServer() : registry_("rollout"), metrics_(&registry_) {}

  MetricsRegistry registry_;
  RolloutMetrics metrics_;
  std::unique_ptr<MetricsServer> metrics_server_;
  std::string metrics_address_;
  std::unique_ptr<DecodeLoop> loop_;
  std::unique_ptr<RolloutService> service_;
  std::unique_ptr<v1::WeightReceiver::Service> receiver_;
  std::unique_ptr<TextService> text_service_;
  ListeningServer listening_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_SERVER_H_
