// The learner's end of the rollout streams: groups in, finished groups out, whatever happens to a server on the way.
//
// A thread a server connects (GetServerInfo: same model? which weights?), brings the server to the learner's weights if
// it has others, opens one Generate stream, and sends groups while the server has credits and its fair share is not
// full. A second thread reads. When the stream breaks, the server drains, or a group passes its deadline, what is not
// complete is issued again, to whichever server is free: the draws are keyed by (seed, group, sample, position), so the
// tokens are the same. Late chunks carry an old attempt and are counted, not used.
//
// Waits: GetServerInfo 5 s; a stream that is silent because its peer has vanished ends by keepalive within 15 s; a
// group by group_timeout; all of it by dead_timeout, after which Next reports every server with its last error.
#ifndef LOCKSTEP_LEARNER_ROLLOUT_CLIENT_H_
#define LOCKSTEP_LEARNER_ROLLOUT_CLIENT_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/metrics.h"
#include "engine/base/mutex.h"
#include "learner/group_assembly.h"
#include "learner/trajectory.h"
#include "proto/learner.pb.h"
#include "proto/rollout.grpc.pb.h"

namespace lockstep {

struct RolloutClientOptions {
  std::string model_hash;  // that servers must have; empty: any
  std::string dtype;       // "fp16", ...; empty: any
  RoutingShape routing;    // of the model, for groups that ask for it
  absl::Duration group_timeout = absl::Seconds(300);
  absl::Duration dead_timeout = absl::Seconds(120);  // with no server ready
  // Brings a server to the last published weights (WeightPublisher::CatchUp). Called from the servers' threads.
  std::function<absl::Status(const std::string& address)> catch_up;
};

// (epoch, version): newer is greater.
using WeightStamp = std::pair<uint64_t, uint64_t>;

class RolloutClient {
 public:
  RolloutClient(const RolloutClientOptions& options, const std::vector<std::string>& addresses,
                MetricsRegistry* metrics);
  ~RolloutClient();

  // A new server, or one that came back: it is tried at once.
  void AddServer(const std::string& address) ABSL_LOCKS_EXCLUDED(mutex_);
  // Until all servers have answered GetServerInfo, or at least one has and `timeout` has passed. UNAVAILABLE when none.
  absl::Status WaitForServers(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);
  // Servers that a weight update should reach.
  std::vector<std::string> LiveAddresses() ABSL_LOCKS_EXCLUDED(mutex_);
  // The weights that servers must have from here on. Those in `updated` have them; others catch up before they get a
  // group. No group is sent before the first call.
  void SetWeights(const WeightStamp& stamp, const std::vector<std::string>& updated) ABSL_LOCKS_EXCLUDED(mutex_);

  // Any number; group_ids are unique among those that are not finished.
  void Submit(v1::Group group) ABSL_LOCKS_EXCLUDED(mutex_);
  // The next finished group, in order of completion. DEADLINE_EXCEEDED: none within `timeout`, try again. Any other
  // error is final: no server for dead_timeout, a group that every server refuses.
  absl::StatusOr<SampleGroup> Next(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);

  std::vector<v1::RolloutServerStatus> ServerStatuses() ABSL_LOCKS_EXCLUDED(mutex_);
  // Samples that are complete, of groups submitted and not yet taken by Next.
  uint32_t samples_done() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Stream = grpc::ClientReaderWriter<v1::GenerateRequest, v1::GenerateResponse>;
  enum class State { kDead, kStale, kReady };

  struct Server {
    std::string address;
    State state = State::kDead;
    bool connected = false;  // has answered since it was last lost
    bool broken = false;     // the stream must be given up
    bool retry_now = false;
    WeightStamp stamp;
    uint32_t credits = 0;
    uint32_t failures = 0;  // in a row, for the back-off
    std::string last_error;
    grpc::ClientContext* context = nullptr;    // of the open stream
    std::map<uint64_t, absl::Time> in_flight;  // group_id -> its deadline
    std::thread thread;
  };
  struct PendingGroup {
    GroupAssembly assembly;
    std::string avoid;  // address of the server that failed it last
    uint32_t exhausted = 0;
  };

  void Work(Server* server) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Connect(Server* server, std::unique_ptr<v1::Rollout::Stub>* stub) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status BringToWeights(Server* server) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Serve(Server* server, v1::Rollout::Stub* stub) ABSL_LOCKS_EXCLUDED(mutex_);
  void Read(Server* server, Stream* stream) ABSL_LOCKS_EXCLUDED(mutex_);
  // The next message for the server, waiting for one; false: the stream is to end.
  bool NextRequest(Server* server, v1::GenerateRequest* request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool TakeGroup(Server* server, v1::GenerateRequest* request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool ExpireGroup(Server* server, v1::GenerateRequest* cancel) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandleChunk(Server* server, const v1::TokenChunk& chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandlePromptRouting(Server* server, const v1::PromptRouting& piece) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandleRefusal(Server* server, const v1::GroupRefused& refused) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Requeue(Server* server, uint64_t group_id, const char* reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Break(Server* server, const std::string& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetState(Server* server, State state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint32_t ReadyServers() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string Errors() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const RolloutClientOptions options_;
  MetricsRegistry* const metrics_;
  const MetricCounter dispatched_;
  const MetricCounter duplicates_;

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool weights_known_ ABSL_GUARDED_BY(mutex_) = false;
  WeightStamp required_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_ready_ ABSL_GUARDED_BY(mutex_);
  absl::Status fatal_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Server>> servers_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, PendingGroup> groups_ ABSL_GUARDED_BY(mutex_);  // submitted, not finished
  std::deque<uint64_t> queue_ ABSL_GUARDED_BY(mutex_);               // of them: to be sent
  std::deque<SampleGroup> finished_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_ROLLOUT_CLIENT_H_
