// The Rollout service: streams, server information, drain. Handlers only enqueue; the decode loop works at its pace.
#ifndef LOCKSTEP_ROLLOUT_SERVER_ROLLOUT_SERVICE_H_
#define LOCKSTEP_ROLLOUT_SERVER_ROLLOUT_SERVICE_H_

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "proto/rollout.grpc.pb.h"
#include "rollout_server/generate_stream.h"

namespace lockstep {

inline constexpr size_t kMaxStreams = 64;

class RolloutService final : public v1::Rollout::CallbackService {
 public:
  // identity: the fields of ServerInfo that never change. on_drain: called (at most once per call of Drain) after
  // admission has stopped. loop and metrics outlive the service.
  RolloutService(const GenerateStreamOptions& stream, const v1::ServerInfo& identity, DecodeLoop* loop,
                 RolloutMetrics* metrics, std::function<void()> on_drain);
  ~RolloutService() override;

  // Stops admission; streams end once their samples are out. Idempotent.
  void BeginDrain() ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether no stream is open before `timeout` has passed.
  bool WaitForStreams(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);

  grpc::ServerBidiReactor<v1::GenerateRequest, v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context) override ABSL_LOCKS_EXCLUDED(mutex_);
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context, const v1::ServerInfoRequest* request,
                                          v1::ServerInfo* info) override ABSL_LOCKS_EXCLUDED(mutex_);
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;

 private:
  const GenerateStreamOptions stream_options_;
  const v1::ServerInfo identity_;
  DecodeLoop* const loop_;
  RolloutMetrics* const metrics_;
  const std::function<void()> on_drain_;
  std::mutex mutex_;
  std::condition_variable stream_ended_;
  absl::flat_hash_map<const GenerateStream*, std::weak_ptr<GenerateStream>> streams_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_ROLLOUT_SERVICE_H_
