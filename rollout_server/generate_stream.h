// One Generate stream of the service: credits in, groups to the decode loop, chunks out with one write outstanding.
//
// Memory of a stream is bounded: at most `credits` groups are in flight; at kMaxQueuedTokens tokens that the client has
// not read (routing counts as the tokens that have its bytes) the engine stops decoding for it (Full); and reading
// stops while kMaxPendingCommands requests have not yet reached the engine.
#ifndef LOCKSTEP_ROLLOUT_SERVER_GENERATE_STREAM_H_
#define LOCKSTEP_ROLLOUT_SERVER_GENERATE_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "proto/rollout.grpc.pb.h"
#include "rollout_server/decode_loop.h"
#include "rollout_server/group_check.h"

namespace lockstep {

inline constexpr size_t kMaxQueuedTokens = 8192;
inline constexpr int kMaxPendingCommands = 1024;

struct GenerateStreamOptions {
  uint32_t credits = 1;  // groups that may be in flight
  GroupLimits limits;
};

class GenerateStream final : public grpc::ServerBidiReactor<v1::GenerateRequest, v1::GenerateResponse>,
                             public ResultSink,
                             public std::enable_shared_from_this<GenerateStream> {
 public:
  // loop and metrics outlive the stream. on_done runs once, when gRPC has let go of the stream.
  GenerateStream(const GenerateStreamOptions& options, grpc::CallbackServerContext* context, DecodeLoop* loop,
                 RolloutMetrics* metrics, bool draining, std::function<void(GenerateStream*)> on_done);

  // Grants the credits and starts to read. The stream holds itself until gRPC is done with it.
  void Begin();
  // Refuses groups from here on and ends the stream once its samples are out.
  void Drain() ABSL_LOCKS_EXCLUDED(mutex_);

  // ResultSink, called by the loop's thread.
  void Push(v1::GenerateResponse response) override ABSL_LOCKS_EXCLUDED(mutex_);
  bool Full() const override { return queued_tokens_.load(std::memory_order_relaxed) >= kMaxQueuedTokens; }
  void Fail(const std::string& reason) override ABSL_LOCKS_EXCLUDED(mutex_);

  // Reactions, called by gRPC's threads.
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void HandleRequest() ABSL_LOCKS_EXCLUDED(mutex_);
  void HandleGroup(v1::Group group) ABSL_LOCKS_EXCLUDED(mutex_);
  void Refuse(const v1::Group& group, v1::GroupRefused::Reason reason, const std::string& message, bool return_credit)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Hands a command to the loop and counts it until it has run.
  void Post(std::function<void(BatchEngine&)> command) ABSL_LOCKS_EXCLUDED(mutex_);
  void CommandDone() ABSL_LOCKS_EXCLUDED(mutex_);
  void CloseInEngine();
  void Enqueue(v1::GenerateResponse response) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const GenerateStreamOptions options_;
  grpc::CallbackServerContext* const context_;
  DecodeLoop* const loop_;
  RolloutMetrics* const metrics_;
  const std::function<void(GenerateStream*)> on_done_;
  std::shared_ptr<GenerateStream> self_;  // from Begin to OnDone

  v1::GenerateRequest request_;  // of the read under way
  std::atomic<size_t> queued_tokens_{0};

  std::mutex mutex_;
  std::deque<v1::GenerateResponse> queue_ ABSL_GUARDED_BY(mutex_);
  v1::GenerateResponse writing_message_ ABSL_GUARDED_BY(mutex_);
  absl::Time write_begin_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool reads_ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool read_paused_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;    // cancelled, or the peer is gone: nothing is pushed any more
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // Finish has been called
  uint32_t in_flight_groups_ ABSL_GUARDED_BY(mutex_) = 0;
  int pending_commands_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_GENERATE_STREAM_H_
