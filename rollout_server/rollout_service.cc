#include "rollout_server/rollout_service.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "proto/channel.h"

namespace lockstep {
namespace {

// A stream that is refused before it begins.
class RefusedStream final : public grpc::ServerBidiReactor<v1::GenerateRequest, v1::GenerateResponse> {
 public:
  explicit RefusedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

grpc::Status NoDeadline(const char* call) {
  return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                      absl::StrCat(call, " was called without a deadline; set one (a few seconds)"));
}

}  // namespace

RolloutService::RolloutService(const GenerateStreamOptions& stream, const v1::ServerInfo& identity, DecodeLoop* loop,
                               RolloutMetrics* metrics, std::function<void()> on_drain)
    : stream_options_(stream), identity_(identity), loop_(loop), metrics_(metrics), on_drain_(std::move(on_drain)) {}

RolloutService::~RolloutService() {
  const std::lock_guard lock(mutex_);
  LOCKSTEP_CHECK(streams_.empty(), "the gRPC server is shut down before its service goes");
}

void RolloutService::BeginDrain() {
  std::vector<std::shared_ptr<GenerateStream>> streams;
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    for (const auto& [pointer, stream] : streams_) {
      if (std::shared_ptr<GenerateStream> held = stream.lock()) streams.push_back(std::move(held));
    }
  }
  for (const std::shared_ptr<GenerateStream>& stream : streams) stream->Drain();
}

bool RolloutService::WaitForStreams(absl::Duration timeout) {
  std::unique_lock lock(mutex_);
  return stream_ended_.wait_for(lock, absl::ToChronoMilliseconds(timeout), [this] { return streams_.empty(); });
}

grpc::ServerBidiReactor<v1::GenerateRequest, v1::GenerateResponse>* RolloutService::Generate(
    grpc::CallbackServerContext* context) {
  std::shared_ptr<GenerateStream> stream;
  {
    const std::lock_guard lock(mutex_);
    if (streams_.size() >= kMaxStreams) {
      return new RefusedStream(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                                            absl::StrCat(kMaxStreams, " streams are open; close one")));
    }
    stream = std::make_shared<GenerateStream>(stream_options_, context, loop_, metrics_, draining_,
                                              [this](GenerateStream* done) {
                                                const std::lock_guard lock(mutex_);
                                                streams_.erase(done);
                                                stream_ended_.notify_all();
                                              });
    streams_.emplace(stream.get(), stream);
  }
  stream->Begin();
  return stream.get();
}

grpc::ServerUnaryReactor* RolloutService::GetServerInfo(grpc::CallbackServerContext* context,
                                                        const v1::ServerInfoRequest*, v1::ServerInfo* info) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!HasDeadline(*context)) {
    reactor->Finish(NoDeadline("GetServerInfo"));
    return reactor;
  }
  *info = identity_;
  const EngineStats stats = loop_->stats();
  info->set_weight_version(stats.weight_version);
  info->set_weight_epoch(stats.weight_epoch);
  info->set_running_samples(stats.running);
  info->set_waiting_samples(stats.waiting);
  info->set_kv_cache_blocks_used(static_cast<uint64_t>(stats.pages_used));
  info->set_generated_tokens_total(stats.generated_tokens);
  {
    const std::lock_guard lock(mutex_);
    info->set_draining(draining_);
  }
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* RolloutService::Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*,
                                                v1::DrainResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!HasDeadline(*context)) {
    reactor->Finish(NoDeadline("Drain"));
    return reactor;
  }
  BeginDrain();
  if (on_drain_) on_drain_();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace lockstep
