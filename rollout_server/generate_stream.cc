#include "rollout_server/generate_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"

namespace lockstep {
namespace {

// What a queued message counts for: its tokens, and its routing in as many tokens as have the same bytes.
size_t QueuedTokens(const v1::GenerateResponse& response) {
  constexpr size_t kTokenBytes = 16;  // id, log-prob and version
  return static_cast<size_t>(response.chunk().token_ids_size()) +
         (response.chunk().routing().size() + response.prompt_routing().routing().size()) / kTokenBytes;
}

}  // namespace

GenerateStream::GenerateStream(const GenerateStreamOptions& options, grpc::CallbackServerContext* context,
                               DecodeLoop* loop, RolloutMetrics* metrics, bool draining,
                               std::function<void(GenerateStream*)> on_done)
    : options_(options),
      context_(context),
      loop_(loop),
      metrics_(metrics),
      on_done_(std::move(on_done)),
      draining_(draining) {}

void GenerateStream::Begin() {
  self_ = shared_from_this();
  {
    const std::lock_guard lock(mutex_);
    if (!draining_) {
      v1::GenerateResponse credits;
      credits.mutable_credits()->set_groups(options_.credits);
      Enqueue(std::move(credits));
    }
    StartNext();
    if (finished_) return;
  }
  StartRead(&request_);
}

void GenerateStream::Drain() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
  StartNext();
}

void GenerateStream::Push(v1::GenerateResponse response) {
  const std::lock_guard lock(mutex_);
  if (broken_ || finished_) return;
  // Every group that was taken ends with one credit.
  if (response.has_credits()) in_flight_groups_ -= std::min(in_flight_groups_, response.credits().groups());
  Enqueue(std::move(response));
  StartNext();
}

void GenerateStream::Fail(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  broken_ = true;
  if (finished_) return;
  LogWarning("stream of ", context_->peer(), ": ", reason);
  context_->TryCancel();
}

void GenerateStream::Enqueue(v1::GenerateResponse response) {
  queued_tokens_.fetch_add(QueuedTokens(response), std::memory_order_relaxed);
  queue_.push_back(std::move(response));
}

void GenerateStream::StartNext() {
  if (writing_ || finished_) return;
  if (broken_) {
    finished_ = true;
    Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the stream was cancelled"));
    return;
  }
  if (!queue_.empty()) {
    writing_ = true;
    writing_message_ = std::move(queue_.front());
    queue_.pop_front();
    write_begin_ = absl::Now();
    StartWrite(&writing_message_);
    return;
  }
  if (in_flight_groups_ > 0 || (!reads_ended_ && !draining_)) return;
  finished_ = true;
  Finish(draining_ && !reads_ended_ ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is draining")
                                    : grpc::Status::OK);
}

void GenerateStream::OnWriteDone(bool ok) {
  bool lost = false;
  {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    queued_tokens_.fetch_sub(QueuedTokens(writing_message_), std::memory_order_relaxed);
    if (!queue_.empty()) {
      metrics_->stream_blocked_seconds.Increment(absl::ToDoubleSeconds(absl::Now() - write_begin_));
    }
    lost = !ok && !broken_;
    if (!ok) broken_ = true;
    StartNext();
  }
  if (lost) CloseInEngine();
}

void GenerateStream::OnReadDone(bool ok) {
  if (!ok) {
    const std::lock_guard lock(mutex_);
    reads_ended_ = true;
    // A cancelled stream ends its reads as well; OnCancel ends the stream then.
    if (!context_->IsCancelled()) StartNext();
    return;
  }
  HandleRequest();
  {
    const std::lock_guard lock(mutex_);
    if (finished_) return;
    read_paused_ = pending_commands_ >= kMaxPendingCommands;
    if (read_paused_) return;
  }
  StartRead(&request_);
}

void GenerateStream::OnCancel() {
  {
    const std::lock_guard lock(mutex_);
    broken_ = true;
    StartNext();
  }
  CloseInEngine();
}

void GenerateStream::OnDone() {
  CloseInEngine();
  on_done_(this);
  // The engine may hold the stream for a little longer, as a sink that takes nothing.
  const std::shared_ptr<GenerateStream> last = std::move(self_);
  const std::lock_guard lock(mutex_);
  broken_ = true;
}

void GenerateStream::CloseInEngine() {
  loop_->Post([self = shared_from_this()](BatchEngine& engine) { engine.Close(self.get()); });
}

void GenerateStream::HandleRequest() {
  switch (request_.kind_case()) {
    case v1::GenerateRequest::kGroup:
      return HandleGroup(std::move(*request_.mutable_group()));
    case v1::GenerateRequest::kCancel: {
      const uint64_t group_id = request_.cancel().group_id();
      const uint32_t attempt = request_.cancel().attempt();
      return Post([this, group_id, attempt](BatchEngine& engine) { engine.Cancel(this, group_id, attempt); });
    }
    case v1::GenerateRequest::KIND_NOT_SET:
      return Refuse(v1::Group(), v1::GroupRefused::REASON_INVALID, "a request has neither group nor cancel", false);
  }
}

void GenerateStream::HandleGroup(v1::Group group) {
  bool credit = false, draining = false;
  {
    const std::lock_guard lock(mutex_);
    if (broken_ || finished_) return;
    draining = draining_;
    credit = in_flight_groups_ < options_.credits;
    if (credit) ++in_flight_groups_;
  }
  if (!credit) {
    return Refuse(group, v1::GroupRefused::REASON_EXHAUSTED,
                  absl::StrCat("sent without a credit: ", options_.credits, " groups are in flight"), false);
  }
  if (draining) return Refuse(group, v1::GroupRefused::REASON_NOT_READY, "the server is draining", true);
  if (absl::Status status = CheckGroup(group, options_.limits); !status.ok()) {
    const bool exhausted = status.code() == absl::StatusCode::kResourceExhausted;
    return Refuse(group, exhausted ? v1::GroupRefused::REASON_EXHAUSTED : v1::GroupRefused::REASON_INVALID,
                  std::string(status.message()), true);
  }
  Post([sink = shared_from_this(), group = std::move(group)](BatchEngine& engine) mutable {
    engine.Submit(std::move(group), sink);
  });
}

void GenerateStream::Refuse(const v1::Group& group, v1::GroupRefused::Reason reason, const std::string& message,
                            bool return_credit) {
  metrics_->rejected.Increment();
  v1::GenerateResponse response;
  v1::GroupRefused* refused = response.mutable_refused();
  refused->set_group_id(group.group_id());
  refused->set_attempt(group.attempt());
  refused->set_reason(reason);
  refused->set_message(message);
  Push(std::move(response));
  if (!return_credit) return;
  v1::GenerateResponse credit;
  credit.mutable_credits()->set_groups(1);
  Push(std::move(credit));
}

void GenerateStream::Post(std::function<void(BatchEngine&)> command) {
  {
    const std::lock_guard lock(mutex_);
    ++pending_commands_;
  }
  loop_->Post([self = shared_from_this(), command = std::move(command)](BatchEngine& engine) mutable {
    command(engine);
    self->CommandDone();
  });
}

void GenerateStream::CommandDone() {
  const std::lock_guard lock(mutex_);
  --pending_commands_;
  if (!read_paused_ || finished_ || pending_commands_ >= kMaxPendingCommands) return;
  read_paused_ = false;
  StartRead(&request_);
}

}  // namespace lockstep
