#include "learner/rollout_client.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "proto/channel.h"

namespace lockstep {
namespace {

constexpr double kInfoTimeoutSeconds = 5;
// Bounds a stream's life; when it ends, the next one takes over what was in flight.
constexpr double kStreamTimeoutSeconds = 24 * 3600;
constexpr absl::Duration kMaxBackoff = absl::Seconds(5);
constexpr absl::Duration kTick = absl::Milliseconds(500);
// A group that was issued this often is not going to work.
constexpr uint32_t kMaxAttempts = 64;

absl::Duration Backoff(uint32_t failures) {
  return std::min(kMaxBackoff, absl::Milliseconds(100) * (1 << std::min(failures, 6u)));
}

}  // namespace

RolloutClient::RolloutClient(const RolloutClientOptions& options, const std::vector<std::string>& addresses,
                             MetricsRegistry* metrics)
    : options_(options),
      metrics_(metrics),
      dispatched_(metrics->Counter("rl_orchestrator_prompts_dispatched_total")),
      duplicates_(metrics->Counter("rl_orchestrator_duplicates_total")),
      last_ready_(absl::Now()) {
  for (const std::string& address : addresses) AddServer(address);
}

RolloutClient::~RolloutClient() {
  std::vector<std::thread*> threads;
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    for (auto& server : servers_) {
      if (server->context != nullptr) server->context->TryCancel();
      threads.push_back(&server->thread);
    }
    changed_.SignalAll();
  }
  for (std::thread* thread : threads) thread->join();
}

void RolloutClient::AddServer(const std::string& address) {
  MutexLock lock(&mutex_);
  for (auto& server : servers_) {
    if (server->address == address) {
      server->retry_now = true;
      changed_.SignalAll();
      return;
    }
  }
  servers_.push_back(std::make_unique<Server>());
  Server* server = servers_.back().get();
  server->address = address;
  server->thread = std::thread([this, server] { Work(server); });
}

absl::Status RolloutClient::WaitForServers(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&mutex_);
  while (true) {
    size_t connected = 0;
    for (const auto& server : servers_) connected += server->connected ? 1 : 0;
    if (connected == servers_.size() && connected > 0) return absl::OkStatus();
    if (!fatal_.ok()) return fatal_;
    if (absl::Now() >= deadline) {
      if (connected > 0) return absl::OkStatus();
      return absl::UnavailableError(
          absl::StrCat("no rollout server answered within ", absl::FormatDuration(timeout), ": ", Errors()));
    }
    changed_.WaitWithDeadline(&mutex_, deadline);
  }
}

std::vector<std::string> RolloutClient::LiveAddresses() {
  MutexLock lock(&mutex_);
  std::vector<std::string> addresses;
  for (const auto& server : servers_) {
    if (server->connected) addresses.push_back(server->address);
  }
  return addresses;
}

void RolloutClient::SetWeights(const WeightStamp& stamp, const std::vector<std::string>& updated) {
  MutexLock lock(&mutex_);
  required_ = stamp;
  weights_known_ = true;
  for (auto& server : servers_) {
    if (std::find(updated.begin(), updated.end(), server->address) != updated.end()) server->stamp = stamp;
  }
  changed_.SignalAll();
}

void RolloutClient::Submit(v1::Group group) {
  MutexLock lock(&mutex_);
  const uint64_t group_id = group.group_id();
  groups_.emplace(group_id, PendingGroup{GroupAssembly(std::move(group), options_.routing), "", 0});
  queue_.push_back(group_id);
  changed_.SignalAll();
}

absl::StatusOr<SampleGroup> RolloutClient::Next(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&mutex_);
  while (finished_.empty()) {
    if (!fatal_.ok()) return fatal_;
    const absl::Time now = absl::Now();
    if (ReadyServers() > 0) last_ready_ = now;
    if (now - last_ready_ > options_.dead_timeout) {
      return absl::UnavailableError(absl::StrCat("no rollout server has been ready for ",
                                                 absl::FormatDuration(options_.dead_timeout), ": ", Errors()));
    }
    if (now >= deadline) return absl::DeadlineExceededError("no group is finished yet");
    changed_.WaitWithDeadline(&mutex_, std::min(deadline, now + kTick));
  }
  SampleGroup group = std::move(finished_.front());
  finished_.pop_front();
  return group;
}

std::vector<v1::RolloutServerStatus> RolloutClient::ServerStatuses() {
  MutexLock lock(&mutex_);
  std::vector<v1::RolloutServerStatus> statuses;
  for (const auto& server : servers_) {
    v1::RolloutServerStatus status;
    status.set_address(server->address);
    status.set_state(server->state == State::kReady ? "ready" : server->state == State::kStale ? "stale" : "dead");
    status.set_weight_version(server->stamp.second);
    status.set_groups_in_flight(static_cast<uint32_t>(server->in_flight.size()));
    status.set_last_error(server->last_error);
    statuses.push_back(std::move(status));
  }
  return statuses;
}

uint32_t RolloutClient::samples_done() {
  MutexLock lock(&mutex_);
  uint32_t samples = 0;
  for (const auto& [group_id, group] : groups_) samples += group.assembly.samples_done();
  for (const SampleGroup& group : finished_) samples += static_cast<uint32_t>(group.samples.size());
  return samples;
}

uint32_t RolloutClient::ReadyServers() const {
  return static_cast<uint32_t>(std::count_if(servers_.begin(), servers_.end(),
                                             [](const auto& server) { return server->state == State::kReady; }));
}

std::string RolloutClient::Errors() const {
  std::string text;
  for (const auto& server : servers_) {
    absl::StrAppend(&text, text.empty() ? "" : "; ", server->address, ": ",
                    server->last_error.empty() ? "connecting" : server->last_error);
  }
  return text.empty() ? "there is none" : text;
}

void RolloutClient::SetState(Server* server, State state) {
  if (server->state == State::kReady && state != State::kReady) last_ready_ = absl::Now();
  server->state = state;
  if (state == State::kDead) server->connected = false;
  changed_.SignalAll();
}

void RolloutClient::Break(Server* server, const std::string& why) {
  server->broken = true;
  if (server->last_error.empty()) server->last_error = why;
  if (server->context != nullptr) server->context->TryCancel();
  changed_.SignalAll();
}

void RolloutClient::Work(Server* server) {
  while (true) {
    std::unique_ptr<v1::Rollout::Stub> stub;
    absl::Status status = Connect(server, &stub);
    if (status.ok()) status = BringToWeights(server);
    if (status.ok()) status = Serve(server, stub.get());
    MutexLock lock(&mutex_);
    if (stopping_) return;
    const std::string error(status.message());
    if (error != server->last_error || server->failures == 0) {
      LogWarning("rollout server ", server->address, ": ", error);
    }
    server->last_error = error;
    SetState(server, State::kDead);
    const absl::Time deadline = absl::Now() + Backoff(server->failures++);
    while (!stopping_ && !server->retry_now && absl::Now() < deadline) changed_.WaitWithDeadline(&mutex_, deadline);
    server->retry_now = false;
    if (stopping_) return;
  }
}

absl::Status RolloutClient::Connect(Server* server, std::unique_ptr<v1::Rollout::Stub>* stub) {
  *stub = v1::Rollout::NewStub(MakeChannel(server->address));
  grpc::ClientContext context;
  SetDeadline(context, kInfoTimeoutSeconds);
  v1::ServerInfo info;
  const grpc::Status status = (*stub)->GetServerInfo(&context, v1::ServerInfoRequest(), &info);
  if (!status.ok()) return ToAbslStatus(status);
  absl::Status refusal;
  if (info.draining()) {
    refusal = absl::UnavailableError("it is draining");
  } else if (!options_.model_hash.empty() && info.model_hash() != options_.model_hash) {
    refusal = absl::FailedPreconditionError(absl::StrCat("it serves another model (hash ", info.model_hash(),
                                                         ", this run's is ", options_.model_hash, ")"));
  } else if (!options_.dtype.empty() && info.dtype() != options_.dtype) {
    refusal = absl::FailedPreconditionError(
        absl::StrCat("it computes in ", info.dtype(), ", rollout.dtype is ", options_.dtype));
  }
  if (!refusal.ok()) return refusal;
  MutexLock lock(&mutex_);
  server->stamp = {info.weight_epoch(), info.weight_version()};
  server->connected = true;
  SetState(server, State::kStale);
  return absl::OkStatus();
}

absl::Status RolloutClient::BringToWeights(Server* server) {
  while (true) {
    {
      MutexLock lock(&mutex_);
      while (!stopping_ && !weights_known_) changed_.WaitWithTimeout(&mutex_, kTick);
      if (stopping_) return absl::CancelledError("the learner ends");
      if (server->stamp >= required_) return absl::OkStatus();
    }
    if (!options_.catch_up) return absl::FailedPreconditionError("its weights are old");
    const absl::Status status = options_.catch_up(server->address);
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat("catching up on weights: ", std::string(status.message())));
    }
    grpc::ClientContext context;
    SetDeadline(context, kInfoTimeoutSeconds);
    v1::ServerInfo info;
    const grpc::Status answer =
        v1::Rollout::NewStub(MakeChannel(server->address))->GetServerInfo(&context, v1::ServerInfoRequest(), &info);
    if (!answer.ok()) return ToAbslStatus(answer);
    MutexLock lock(&mutex_);
    server->stamp = {info.weight_epoch(), info.weight_version()};
    LogInfo("rollout server ", server->address, " has caught up: epoch ", info.weight_epoch(), " version ",
            info.weight_version());
  }
}

absl::Status RolloutClient::Serve(Server* server, v1::Rollout::Stub* stub) {
  grpc::ClientContext context;
  SetDeadline(context, kStreamTimeoutSeconds);
  std::unique_ptr<Stream> stream = stub->Generate(&context);
  {
    MutexLock lock(&mutex_);
    server->context = &context;
    server->broken = false;
    server->credits = 0;
    server->last_error.clear();
    if (stopping_) context.TryCancel();
  }
  std::thread reader([this, server, &stream] { Read(server, stream.get()); });
  while (true) {
    v1::GenerateRequest request;
    {
      MutexLock lock(&mutex_);
      if (!NextRequest(server, &request)) break;
    }
    if (!stream->Write(request)) break;
  }
  context.TryCancel();
  reader.join();
  const grpc::Status status = stream->Finish();
  MutexLock lock(&mutex_);
  server->context = nullptr;
  std::vector<uint64_t> lost;
  for (const auto& [group_id, deadline] : server->in_flight) lost.push_back(group_id);
  for (auto it = lost.rbegin(); it != lost.rend(); ++it) Requeue(server, *it, "stream");
  if (!server->last_error.empty()) return absl::UnavailableError(server->last_error);
  return absl::UnavailableError(absl::StrCat("the stream ended: ", status.error_message()));
}

void RolloutClient::Read(Server* server, Stream* stream) {
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
    MutexLock lock(&mutex_);
    switch (response.kind_case()) {
      case v1::GenerateResponse::kCredits:
        server->credits += response.credits().groups();
        server->failures = 0;
        if (server->state != State::kReady && !server->broken) SetState(server, State::kReady);
        changed_.SignalAll();
        break;
      case v1::GenerateResponse::kChunk:
        HandleChunk(server, response.chunk());
        break;
      case v1::GenerateResponse::kPromptRouting:
        HandlePromptRouting(server, response.prompt_routing());
        break;
      case v1::GenerateResponse::kRefused:
        HandleRefusal(server, response.refused());
        break;
      case v1::GenerateResponse::KIND_NOT_SET:
        Break(server, "it sent an empty response");
        break;
    }
  }
  MutexLock lock(&mutex_);
  server->broken = true;
  changed_.SignalAll();
}

bool RolloutClient::NextRequest(Server* server, v1::GenerateRequest* request) {
  while (!stopping_ && !server->broken) {
    if (server->stamp < required_) {
      Break(server, "its weights are old: it missed an update");
      return false;
    }
    if (ExpireGroup(server, request) || TakeGroup(server, request)) return true;
    changed_.WaitWithTimeout(&mutex_, kTick);
  }
  return false;
}

bool RolloutClient::TakeGroup(Server* server, v1::GenerateRequest* request) {
  if (server->credits == 0 || queue_.empty()) return false;
  // An even share, so that the first server to connect does not take everything.
  const uint32_t ready = std::max(1u, ReadyServers());
  if (server->in_flight.size() >= (groups_.size() + ready - 1) / ready) return false;
  for (auto it = queue_.begin(); it != queue_.end(); ++it) {
    PendingGroup& group = groups_.at(*it);
    if (ready > 1 && group.avoid == server->address) continue;
    *request->mutable_group() = group.assembly.NextIssue();
    server->in_flight[*it] = absl::Now() + options_.group_timeout;
    --server->credits;
    queue_.erase(it);
    dispatched_.Increment();
    return true;
  }
  return false;
}

bool RolloutClient::ExpireGroup(Server* server, v1::GenerateRequest* cancel) {
  const absl::Time now = absl::Now();
  for (const auto& [group_id, deadline] : server->in_flight) {
    if (now < deadline) continue;
    LogWarning("group ", group_id, " was not finished by ", server->address, " within ",
               absl::FormatDuration(options_.group_timeout), "; it is issued again");
    cancel->mutable_cancel()->set_group_id(group_id);
    cancel->mutable_cancel()->set_attempt(groups_.at(group_id).assembly.attempt());
    Requeue(server, group_id, "timeout");
    return true;
  }
  return false;
}

void RolloutClient::Requeue(Server* server, uint64_t group_id, const char* reason) {
  server->in_flight.erase(group_id);
  PendingGroup& group = groups_.at(group_id);
  group.avoid = server->address;
  if (group.assembly.attempt() >= kMaxAttempts && fatal_.ok()) {
    fatal_ = absl::UnavailableError(absl::StrCat("group ", group_id, " was issued ", kMaxAttempts,
                                                 " times without an end; last by ", server->address, ": ",
                                                 server->last_error));
  }
  queue_.push_front(group_id);
  metrics_->Counter("rl_orchestrator_retries_total", {{"reason", reason}}).Increment();
  changed_.SignalAll();
}

void RolloutClient::HandleChunk(Server* server, const v1::TokenChunk& chunk) {
  const uint64_t group_id = chunk.group_id();
  if (server->in_flight.count(group_id) == 0) {
    duplicates_.Increment();
    return;
  }
  GroupAssembly& assembly = groups_.at(group_id).assembly;
  const auto outcome = assembly.Add(chunk);
  if (!outcome.ok()) return Break(server, absl::StrCat("bad chunk: ", std::string(outcome.status().message())));
  switch (*outcome) {
    case GroupAssembly::Outcome::kAppended:
    case GroupAssembly::Outcome::kSampleDone:
      return;
    case GroupAssembly::Outcome::kStale:
      duplicates_.Increment();
      return;
    case GroupAssembly::Outcome::kCancelled:
      return Requeue(server, group_id, "stream");
    case GroupAssembly::Outcome::kGroupDone:
      break;
  }
  SampleGroup group;
  group.group_id = group_id;
  group.samples = assembly.TakeSamples();
  finished_.push_back(std::move(group));
  server->in_flight.erase(group_id);
  groups_.erase(group_id);
  changed_.SignalAll();
}

void RolloutClient::HandlePromptRouting(Server* server, const v1::PromptRouting& piece) {
  if (server->in_flight.count(piece.group_id()) == 0) return;  // of an attempt that was given up
  const absl::Status status = groups_.at(piece.group_id()).assembly.AddPromptRouting(piece);
  if (!status.ok()) Break(server, std::string(status.message()));
}

void RolloutClient::HandleRefusal(Server* server, const v1::GroupRefused& refused) {
  const auto it = groups_.find(refused.group_id());
  if (it == groups_.end() || server->in_flight.count(refused.group_id()) == 0 ||
      it->second.assembly.attempt() != refused.attempt()) {
    return;
  }
  const std::string why = absl::StrCat("group ", refused.group_id(), " was refused: ", refused.message());
  if (refused.reason() == v1::GroupRefused::REASON_NOT_READY) return Break(server, why);
  const bool exhausted = refused.reason() == v1::GroupRefused::REASON_EXHAUSTED;
  if ((!exhausted || ++it->second.exhausted > 2 * servers_.size()) && fatal_.ok()) {
    fatal_ = absl::InvalidArgumentError(absl::StrCat("rollout server ", server->address, ": ", why));
  }
  Requeue(server, refused.group_id(), "refused");
}

}  // namespace lockstep
