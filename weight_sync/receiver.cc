#include "weight_sync/receiver.h"

#include <signal.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/metrics.h"
#include "engine/base/mutex.h"
#include "proto/channel.h"
#include "weight_sync/bucket_plan.h"
#include "weight_sync/comm_device.h"
#include "weight_sync/failpoints.h"
#include "weight_sync/host_shadow.h"
#include "weight_sync/member_identity.h"
#include "weight_sync/rendezvous_store.h"
#include "weight_sync/shadow.h"
#include "weight_sync/sync_metrics.h"
#include "weight_sync/transport.h"
#include "weight_sync/update_machine.h"

namespace lockstep {
namespace {

// How soon a dead sender or a passed deadline ends an update.
constexpr absl::Duration kWatchPeriod = absl::Milliseconds(100);

// The things behind the machine's actions. Handlers that work on an update hold a reference; Drop makes them return.
struct Update {
  UpdateKey key;
  absl::Time deadline;
  std::string store_address;
  std::string transport_name;
  v1::UpdateManifest manifest;
  std::unique_ptr<Shadow> shadow;
  std::shared_ptr<WeightTransport> transport;  // guarded by Receiver::mutex_
  bool received = false;                       // guarded by Receiver::mutex_: all buckets are here and right
  grpc::ServerContext* rpc = nullptr;          // guarded by Receiver::mutex_: the Receive or Pull call under way
  grpc::ClientContext fetch;                   // Pull only
};

template <typename Request>
UpdateKey KeyOf(const Request& request) {
  return {{request.epoch(), request.version()}, request.attempt()};
}

class Receiver : public v1::WeightReceiver::Service {
 public:
  Receiver(const WeightReceiverOptions& options, FlipWeights flip)
      : options_(options), layout_(options.config), flip_(std::move(flip)) {
    state_.committed = {options.initial_epoch, options.initial_version};
    state_.seen.id = state_.committed;
    if (options.metrics != nullptr) metrics_.emplace(*options.metrics);
    if (metrics_) metrics_->version.Set(static_cast<double>(options.initial_version));
    watch_ = std::thread([this] { Watch(); });
  }

  ~Receiver() override {
    std::shared_ptr<Update> update;
    {
      MutexLock lock(&mutex_);
      stop_ = true;
      wake_.SignalAll();
      update = std::move(update_);
    }
    Drop(update);
    watch_.join();
  }

  grpc::Status Describe(grpc::ServerContext*, const v1::DescribeRequest*, v1::ReceiverDescription* response) override;
  grpc::Status Begin(grpc::ServerContext*, const v1::BeginUpdate* request, v1::Vote* vote) override;
  grpc::Status Receive(grpc::ServerContext* context, const v1::ReceiveBuckets* request,
                       v1::Received* response) override;
  grpc::Status Commit(grpc::ServerContext*, const v1::CommitUpdate* request, v1::Committed* response) override;
  grpc::Status Abort(grpc::ServerContext*, const v1::AbortUpdate* request, v1::Aborted*) override;
  grpc::Status Pull(grpc::ServerContext* context, const v1::PullUpdate* request, v1::Committed* response) override;

 private:
  struct Applied {
    absl::Status answer;
    bool act = false;                // an action beside kDropShadow is to be carried out
    bool prepared = false;           // the state after the event
    std::shared_ptr<Update> update;  // the current one, after the event
  };
  Applied Apply(ReceiverEvent event, std::shared_ptr<Update> begun = nullptr) ABSL_LOCKS_EXCLUDED(mutex_);
  Applied Apply(ReceiverEvent::Kind kind, const UpdateKey& key, const absl::Status& status = absl::OkStatus(),
                bool digests_match = false) {
    ReceiverEvent event;
    event.kind = kind;
    event.key = key;
    event.status = status;
    event.digests_match = digests_match;
    return Apply(std::move(event));
  }

  absl::Status Prepare(Update& update, const v1::UpdateManifest& manifest, bool on_device);
  absl::Status Join(Update& update, const v1::ReceiveBuckets& request);
  absl::Status Fetch(Update& update, const v1::PullUpdate& request);
  absl::Status Fill(Update& update, const std::function<absl::Status(uint64_t, void*, uint64_t)>& receive);
  bool DigestsMatch(const Update& update) const;
  absl::StatusOr<double> Flip(Update& update, const std::string& in_flight);
  void SetRpc(Update& update, grpc::ServerContext* rpc) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    update.rpc = rpc;
  }
  void Drop(const std::shared_ptr<Update>& update) ABSL_LOCKS_EXCLUDED(mutex_);
  void Watch() ABSL_LOCKS_EXCLUDED(mutex_);

  const WeightReceiverOptions options_;
  const ParamLayout layout_;
  const FlipWeights flip_;
  std::optional<SyncMetrics> metrics_;
  Mutex mutex_;
  CondVar wake_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  ReceiverState state_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<Update> update_ ABSL_GUARDED_BY(mutex_);
  std::thread watch_;
};

Receiver::Applied Receiver::Apply(ReceiverEvent event, std::shared_ptr<Update> begun) {
  std::shared_ptr<Update> dropped;
  Applied applied;
  {
    MutexLock lock(&mutex_);
    const bool mismatched = state_.state == UpdateState::kVerifying && !state_.digests_match;
    ReceiverTransition transition = Step(state_, event, absl::Now());
    state_ = std::move(transition.next);
    for (const ReceiverAction action : transition.actions) {
      if (action == ReceiverAction::kDropShadow) {
        dropped = std::move(update_);
      } else {
        applied.act = true;
      }
    }
    if (event.kind == ReceiverEvent::Kind::kBegin && applied.act) {
      begun->deadline = state_.deadline;
      update_ = std::move(begun);
    }
    applied.answer = std::move(transition.answer);
    applied.prepared = state_.prepared;
    applied.update = update_;
    if (event.kind == ReceiverEvent::Kind::kFlipped && applied.answer.ok()) dropped = std::move(update_);
    if (!transition.reason.empty()) LogInfo(transition.reason);
    if (metrics_ && dropped != nullptr && state_.state != UpdateState::kCommitted) {
      metrics_->CountOutcome(event.kind == ReceiverEvent::Kind::kTick ? absl::DeadlineExceededError("")
                             : mismatched                             ? absl::DataLossError("")
                                                                      : absl::AbortedError(""));
    }
    wake_.SignalAll();
  }
  Drop(dropped);
  return applied;
}

void Receiver::Drop(const std::shared_ptr<Update>& update) {
  if (update == nullptr) return;
  std::shared_ptr<WeightTransport> transport;
  bool received = false;
  {
    MutexLock lock(&mutex_);
    transport = std::move(update->transport);
    received = update->received;
    update->fetch.TryCancel();
  }
  if (transport == nullptr) return;
  if (received) {
    transport->Keep();
  } else {
    transport->Close();
  }
}

// Ends updates whose deadline has passed, or whose Receive or Pull call has lost its caller: a sender that dies in the
// middle of a bucket would else be noticed only at the bucket's deadline.
void Receiver::Watch() {
  while (true) {
    ReceiverEvent event;  // kTick
    {
      MutexLock lock(&mutex_);
      if (stop_) return;
      if (!state_.busy()) {
        wake_.Wait(&mutex_);
        continue;
      }
      wake_.WaitWithTimeout(&mutex_, kWatchPeriod);
      if (stop_) return;
      if (update_ == nullptr || state_.flipping) continue;
      if (update_->rpc != nullptr && update_->rpc->IsCancelled()) {
        event.kind = ReceiverEvent::Kind::kAbort;
        event.key = update_->key;
      } else if (absl::Now() < state_.deadline) {
        continue;
      }
    }
    Apply(std::move(event));
  }
}

absl::Status Receiver::Prepare(Update& update, const v1::UpdateManifest& manifest, bool on_device) {
  absl::StatusOr<BucketPlan> plan = CheckManifest(options_.config, layout_, options_.dtype, manifest);
  if (!plan.ok()) return plan.status();
  update.manifest = manifest;
  if (on_device) {
    absl::StatusOr<std::unique_ptr<Shadow>> shadow = options_.device_shadow(*plan, update.key.id);
    if (shadow.ok()) update.shadow = *std::move(shadow);
    return shadow.status();
  }
  update.shadow = MakeHostShadow(options_.config, *plan, update.key.id);
  return absl::OkStatus();
}

grpc::Status Receiver::Describe(grpc::ServerContext*, const v1::DescribeRequest*, v1::ReceiverDescription* response) {
  for (const auto& [name, kind] : options_.transports) {
    response->add_transports(name);
    if (kind.device != nullptr) response->set_bus_id(kind.device->runtime->bus_id());
  }
  if (!response->bus_id().empty()) response->set_host(ThisHost());
  return grpc::Status::OK;
}

grpc::Status Receiver::Begin(grpc::ServerContext*, const v1::BeginUpdate* request, v1::Vote* vote) {
  const absl::Time begun = absl::Now();
  auto update = std::make_shared<Update>();
  update->key = KeyOf(*request);
  update->store_address = request->store_address();
  update->transport_name = request->transport();
  ReceiverEvent event;
  event.kind = ReceiverEvent::Kind::kBegin;
  event.key = update->key;
  event.budget =
      absl::Milliseconds(std::min<uint64_t>(request->timeout_ms(), absl::ToInt64Milliseconds(kMaxUpdateBudget)));
  const Applied begin = Apply(std::move(event), update);
  if (!begin.answer.ok()) {
    if (metrics_ && absl::IsFailedPrecondition(begin.answer)) metrics_->refused_epoch.Increment();
    return ToGrpcStatus(begin.answer);
  }
  if (!begin.act) {  // the same Begin once more
    vote->set_ready(begin.prepared);
    if (!begin.prepared) vote->set_reason("the first Begin of this attempt is still being prepared");
    return grpc::Status::OK;
  }
  absl::Status prepared;
  if (const auto transport = options_.transports.find(request->transport()); transport != options_.transports.end()) {
    prepared =
        Prepare(*update, request->manifest(), transport->second.device != nullptr && options_.device_shadow != nullptr);
  } else {
    prepared = absl::FailedPreconditionError(
        absl::StrCat("transport \"", request->transport().substr(0, 32), "\" refused: this server has ",
                     TransportNames(options_.transports), "; set weight_sync.transport"));
  }
  prepared = Apply(ReceiverEvent::Kind::kPrepared, update->key, prepared).answer;
  vote->set_ready(prepared.ok());
  if (prepared.ok()) {
    const auto& kept = options_.transports.at(request->transport()).kept;
    if (kept != nullptr) vote->set_kept_group(kept());
  }
  if (!prepared.ok()) vote->set_reason(std::string(prepared.message()));
  if (metrics_) metrics_->begin_seconds.Observe(absl::ToDoubleSeconds(absl::Now() - begun));
  return grpc::Status::OK;
}

absl::Status Receiver::Join(Update& update, const v1::ReceiveBuckets& request) {
  const std::string address = update.store_address;
  const std::shared_ptr<WeightTransport> transport =
      options_.transports.at(update.transport_name)
          .make(MakeGrpcGroupTable(MakeChannel(address), request.store_prefix()));
  {
    MutexLock lock(&mutex_);
    if (update_.get() != &update) return absl::CancelledError("the update was dropped");
    update.transport = transport;
  }
  if (FailpointFires("receiver.die_before_join")) raise(SIGKILL);
  if (FailpointFires("receiver.stop_before_join")) raise(SIGSTOP);
  TransportGroup group;
  group.rank = static_cast<int>(request.rank());
  group.size = static_cast<int>(request.world_size());
  group.route_to = address;
  group.name = request.store_prefix();
  group.kept = request.kept_group();
  absl::Status joined = transport->Join(group, JoinDeadline(*transport, absl::Now(), update.deadline));
  if (!joined.ok()) return joined;
  return Fill(update, [&](uint64_t bucket, void* memory, uint64_t bytes) {
    if (FailpointFires("receiver.die")) raise(SIGKILL);
    if (FailpointFires("receiver.stop")) raise(SIGSTOP);
    std::vector<char> elsewhere(FailpointFires("receiver.misplace_bucket") ? bytes : 0);
    return transport->Receive(bucket, elsewhere.empty() ? memory : elsewhere.data(), bytes,
                              BucketDeadline(bytes, absl::Now(), update.deadline));
  });
}

absl::Status Receiver::Fill(Update& update, const std::function<absl::Status(uint64_t, void*, uint64_t)>& receive) {
  return update.shadow->Fill([&](uint64_t bucket, void* memory, uint64_t bytes) {
    absl::Status status = receive(bucket, memory, bytes);
    if (status.ok() && metrics_) {
      metrics_->buckets.Increment();
      metrics_->bytes.Increment(static_cast<double>(bytes));
    }
    return status;
  });
}

bool Receiver::DigestsMatch(const Update& update) const {
  const std::vector<uint64_t>& digests = update.shadow->digests();
  bool match = true;
  for (size_t i = 0; i < digests.size(); ++i) {
    const uint64_t expected = update.manifest.buckets(static_cast<int>(i)).digest();
    if (digests[i] == expected) continue;
    LogWarning("update ", ToString(update.key.id), ": bucket ", i, " has another digest than the manifest says");
    if (metrics_) metrics_->digest_mismatches.Increment();
    match = false;
  }
  return match;
}

grpc::Status Receiver::Receive(grpc::ServerContext* context, const v1::ReceiveBuckets* request,
                               v1::Received* response) {
  const absl::Time begun = absl::Now();
  const UpdateKey key = KeyOf(*request);
  const Applied receive = Apply(ReceiverEvent::Kind::kReceive, key);
  if (!receive.answer.ok()) return ToGrpcStatus(receive.answer);
  Update& update = *receive.update;
  absl::Status status = absl::InvalidArgumentError(absl::StrCat("rank ", request->rank(), " of ", request->world_size(),
                                                                " is not a receiver's; the sender is rank 0"));
  if (request->rank() > 0 && request->rank() < request->world_size() && request->world_size() <= kMaxGroupSize) {
    SetRpc(update, context);
    status = Join(update, *request);
    SetRpc(update, nullptr);
  }
  const bool match = status.ok() && DigestsMatch(update);
  if (match) {
    MutexLock lock(&mutex_);
    update.received = true;  // this thread has left the transport
  }
  status = Apply(ReceiverEvent::Kind::kReceived, key, status, match).answer;
  if (!status.ok()) return ToGrpcStatus(status);
  for (const uint64_t digest : update.shadow->digests()) response->add_bucket_digests(digest);
  response->set_bytes(update.shadow->plan().total_bytes);
  response->set_seconds(absl::ToDoubleSeconds(absl::Now() - begun));
  if (metrics_) metrics_->transfer_seconds.Observe(response->seconds());
  return grpc::Status::OK;
}

absl::StatusOr<double> Receiver::Flip(Update& update, const std::string& in_flight) {
  const absl::Time begun = absl::Now();
  absl::StatusOr<double> pause = flip_(update.shadow->Release(), in_flight);
  const absl::Status flipped = Apply(ReceiverEvent::Kind::kFlipped, update.key, pause.status()).answer;
  if (!flipped.ok()) return flipped;
  if (metrics_) {
    metrics_->committed.Increment();
    metrics_->version.Set(static_cast<double>(update.key.id.version));
    metrics_->commit_seconds.Observe(absl::ToDoubleSeconds(absl::Now() - begun));
    metrics_->pause_seconds.Observe(*pause);
  }
  return pause;
}

grpc::Status Receiver::Commit(grpc::ServerContext*, const v1::CommitUpdate* request, v1::Committed* response) {
  const UpdateKey key = KeyOf(*request);
  const Applied commit = Apply(ReceiverEvent::Kind::kCommit, key);
  if (!commit.answer.ok()) return ToGrpcStatus(commit.answer);
  response->set_epoch(key.id.epoch);
  response->set_version(key.id.version);
  if (!commit.act) return grpc::Status::OK;
  const absl::StatusOr<double> pause = Flip(*commit.update, request->in_flight());
  if (!pause.ok()) return ToGrpcStatus(pause.status());
  response->set_pause_seconds(*pause);
  if (FailpointFires("receiver.lose_commit_answer")) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "failpoint");
  return grpc::Status::OK;
}

grpc::Status Receiver::Abort(grpc::ServerContext*, const v1::AbortUpdate* request, v1::Aborted*) {
  const UpdateKey key = KeyOf(*request);
  LogInfo("abort of ", ToString(key.id), " attempt ", key.attempt, ": ", request->reason().substr(0, 500));
  return ToGrpcStatus(Apply(ReceiverEvent::Kind::kAbort, key).answer);
}

// Opens the stream, prepares by its first message, fills the shadow from the rest.
absl::Status Receiver::Fetch(Update& update, const v1::PullUpdate& request) {
  const std::unique_ptr<v1::WeightSource::Stub> stub = v1::WeightSource::NewStub(MakeChannel(request.source_address()));
  SetDeadline(update.fetch, absl::ToDoubleSeconds(update.deadline - absl::Now()));
  v1::FetchRequest fetch;
  fetch.set_epoch(update.key.id.epoch);
  fetch.set_version(update.key.id.version);
  fetch.set_dtype(std::string(DTypeName(options_.dtype)));
  const std::unique_ptr<grpc::ClientReader<v1::FetchedBucket>> reader = stub->Fetch(&update.fetch, fetch);
  v1::FetchedBucket message;
  const auto finish = [&](absl::Status status) {
    update.fetch.TryCancel();
    const absl::Status finished = ToAbslStatus(reader->Finish());
    // A stream that ended early says why itself.
    return absl::IsUnavailable(status) && !finished.ok() ? finished : status;
  };
  if (!reader->Read(&message)) return finish(absl::UnavailableError("the source sent nothing"));
  absl::Status status = Prepare(update, message.manifest(), /*on_device=*/false);
  status = Apply(ReceiverEvent::Kind::kPrepared, update.key, status).answer;
  if (status.ok()) status = Apply(ReceiverEvent::Kind::kReceive, update.key).answer;
  if (!status.ok()) return finish(status);
  status = Fill(update, [&](uint64_t bucket, void* memory, uint64_t bytes) {
    for (uint64_t got = 0; got < bytes; got += message.data().size()) {
      if (!reader->Read(&message)) return absl::UnavailableError("the source's stream ended early");
      if (message.bucket_index() != bucket || message.data().empty() || message.data().size() > bytes - got) {
        return absl::DataLossError(absl::StrCat("the source sent ", message.data().size(), " bytes of bucket ",
                                                message.bucket_index(), " where bucket ", bucket, " lacked ",
                                                bytes - got));
      }
      message.data().copy(static_cast<char*>(memory) + got, message.data().size());
    }
    return absl::OkStatus();
  });
  const bool match = status.ok() && DigestsMatch(update);
  if (status.ok() && !match) status = absl::DataLossError("digests of the fetched buckets differ from the manifest");
  return finish(Apply(ReceiverEvent::Kind::kReceived, update.key, status, match).answer);
}

grpc::Status Receiver::Pull(grpc::ServerContext* context, const v1::PullUpdate* request, v1::Committed* response) {
  auto update = std::make_shared<Update>();
  update->key = KeyOf(*request);
  response->set_epoch(request->epoch());
  response->set_version(request->version());
  ReceiverEvent event;
  event.kind = ReceiverEvent::Kind::kBegin;
  event.key = update->key;
  event.budget =
      absl::Milliseconds(std::min<uint64_t>(request->timeout_ms(), absl::ToInt64Milliseconds(kMaxUpdateBudget)));
  const Applied begin = Apply(std::move(event), update);
  if (absl::IsAlreadyExists(begin.answer)) return grpc::Status::OK;
  if (!begin.answer.ok()) {
    if (metrics_ && absl::IsFailedPrecondition(begin.answer)) metrics_->refused_epoch.Increment();
    return ToGrpcStatus(begin.answer);
  }
  if (!begin.act) return grpc::Status(grpc::StatusCode::ABORTED, "the same pull is under way");
  SetRpc(*update, context);
  absl::Status status = Fetch(*update, *request);
  SetRpc(*update, nullptr);
  if (status.ok()) status = Apply(ReceiverEvent::Kind::kCommit, update->key).answer;
  if (!status.ok()) {
    Apply(ReceiverEvent::Kind::kAbort, update->key);
    return ToGrpcStatus(status);
  }
  const absl::StatusOr<double> pause = Flip(*update, request->in_flight());
  if (!pause.ok()) return ToGrpcStatus(pause.status());
  response->set_pause_seconds(*pause);
  return grpc::Status::OK;
}

}  // namespace

std::unique_ptr<v1::WeightReceiver::Service> MakeWeightReceiver(const WeightReceiverOptions& options,
                                                                FlipWeights flip) {
  return std::make_unique<Receiver>(options, std::move(flip));
}

}  // namespace lockstep
