#include "weight_sync/publisher.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/metrics.h"
#include "engine/base/mutex.h"
#include "proto/channel.h"
#include "weight_sync/device_snapshot.h"
#include "weight_sync/sync_metrics.h"
#include "weight_sync/transport_choice.h"
#include "weight_sync/update_run.h"
#include "weight_sync/weight_snapshot.h"

namespace lockstep {
namespace {

constexpr uint64_t kFetchChunkBytes = 2 << 20;
constexpr double kConnectSeconds = 3;  // CatchUp: for a server that has just come back
constexpr size_t kMaxServers = 1023;
// "auto": a server that is asked what it can do and does not say so within this will not vote either.
constexpr absl::Duration kDescribeTimeout = absl::Seconds(1);

// Owns the version that late joiners may fetch.
class SourceService : public RendezvousService {
 public:
  explicit SourceService(std::shared_ptr<RendezvousTable> table, DType dtype)
      : RendezvousService(std::move(table)), dtype_(dtype) {}

  std::shared_ptr<const WeightSnapshot> snapshot() const {
    MutexLock lock(&mutex_);
    return snapshot_;
  }
  // Null: there is no new one after all.
  void SetSnapshot(std::shared_ptr<const WeightSnapshot> snapshot) {
    std::shared_ptr<const WeightSnapshot> previous;
    MutexLock lock(&mutex_);
    if (snapshot != nullptr) previous = std::exchange(snapshot_, std::move(snapshot));
    making_ = false;
    changed_.SignalAll();
  }
  // Lets go of the snapshot, so that its memory is the next one's.
  void BeginSnapshot() {
    std::shared_ptr<const WeightSnapshot> previous;
    MutexLock lock(&mutex_);
    previous = std::exchange(snapshot_, nullptr);
    making_ = true;
  }
  // The one that is being made, if one is: null where that takes longer than `timeout`, or fails.
  std::shared_ptr<const WeightSnapshot> AwaitSnapshot(absl::Duration timeout) {
    const absl::Time deadline = absl::Now() + timeout;
    MutexLock lock(&mutex_);
    while (making_ && absl::Now() < deadline) changed_.WaitWithDeadline(&mutex_, deadline);
    return snapshot_;
  }

  grpc::Status Fetch(grpc::ServerContext* context, const v1::FetchRequest* request,
                     grpc::ServerWriter<v1::FetchedBucket>* writer) override {
    if (!HasDeadline(*context)) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "Fetch needs a deadline; set one on the call");
    }
    const std::shared_ptr<const WeightSnapshot> snapshot = this->snapshot();
    const WeightId asked{request->epoch(), request->version()};
    if (snapshot == nullptr || snapshot->id != asked) {
      return ToGrpcStatus(absl::FailedPreconditionError(
          absl::StrCat("fetch of ", ToString(asked), " refused: this learner ",
                       snapshot == nullptr ? "has published nothing yet" : "now holds " + ToString(snapshot->id))));
    }
    if (request->dtype() != std::string(DTypeName(dtype_))) {
      return ToGrpcStatus(absl::InvalidArgumentError(
          absl::StrCat("fetch in dtype \"", request->dtype().substr(0, 32), "\" refused: this learner publishes ",
                       std::string(DTypeName(dtype_)), "; set rollout.dtype to the same on both")));
    }
    return Stream(*snapshot, writer);
  }

 private:
  static grpc::Status Stream(const WeightSnapshot& snapshot, grpc::ServerWriter<v1::FetchedBucket>* writer) {
    v1::FetchedBucket message;
    message.set_epoch(snapshot.id.epoch);
    message.set_version(snapshot.id.version);
    *message.mutable_manifest() = snapshot.manifest;
    if (!writer->Write(message)) return grpc::Status(grpc::StatusCode::CANCELLED, "the receiver has gone");
    message.clear_manifest();
    for (size_t i = 0; i < snapshot.plan.buckets.size(); ++i) {
      message.set_bucket_index(static_cast<uint32_t>(i));
      const uint64_t bytes = snapshot.plan.buckets[i].bytes;
      for (uint64_t at = 0; at < bytes; at += kFetchChunkBytes) {
        std::string& data = *message.mutable_data();
        data.resize(std::min(kFetchChunkBytes, bytes - at));
        const absl::Status read = snapshot.Read(snapshot.plan.buckets[i].begin + at, data.size(), data.data());
        if (!read.ok()) return ToGrpcStatus(read);
        if (!writer->Write(message)) return grpc::Status(grpc::StatusCode::CANCELLED, "the receiver has gone");
      }
    }
    return grpc::Status::OK;
  }

  const DType dtype_;
  mutable Mutex mutex_;
  CondVar changed_;
  bool making_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<const WeightSnapshot> snapshot_ ABSL_GUARDED_BY(mutex_);
};

class Publisher : public WeightPublisher {
 public:
  explicit Publisher(const WeightPublisherOptions& options)
      : options_(options),
        layout_(options.config),
        transport_name_(options.sync.transport().empty() ? "gloo" : options.sync.transport()),
        store_(options.store != nullptr ? options.store : std::make_shared<RendezvousTable>()),
        service_(store_, options.dtype) {
    if (options.metrics != nullptr) metrics_.emplace(*options.metrics);
  }

  v1::WeightSource::Service* service() override { return &service_; }
  void SetSourceAddress(const std::string& address) override {
    MutexLock lock(&mutex_);
    source_address_ = address;
  }
  absl::StatusOr<UpdateReport> Publish(uint64_t epoch, uint64_t version, const PublishSource& source,
                                       const std::vector<std::string>& addresses) override;
  absl::Status CatchUp(const std::string& address) override;

 private:
  absl::Status Check(const WeightId& id, const std::vector<std::string>& addresses) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(publish_mutex_);
  std::string TransportOf(const std::vector<std::shared_ptr<ServerPeer>>& peers)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(publish_mutex_);
  absl::StatusOr<std::shared_ptr<const WeightSnapshot>> Snapshot(WeightId id, const PublishSource& source,
                                                                 const std::string& transport_name);
  std::shared_ptr<ServerPeer> Peer(const std::string& address) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::shared_ptr<ServerPeer>& peer = peers_[address];
    if (peer == nullptr) peer = MakeServerPeer(address);
    return peer;
  }
  uint32_t TakeAttempts() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const uint32_t first = next_attempt_;
    next_attempt_ += kMaxAttempts;
    return first;
  }
  void Record(const UpdateOutcome& outcome, const absl::Status& status) const;

  const WeightPublisherOptions options_;
  const ParamLayout layout_;
  const std::string transport_name_;
  const std::shared_ptr<RendezvousTable> store_;
  SourceService service_;
  std::optional<SyncMetrics> metrics_;
  Mutex publish_mutex_;  // one Publish at a time; taken before mutex_
  WeightId last_ ABSL_GUARDED_BY(publish_mutex_);
  KeptMembers kept_ ABSL_GUARDED_BY(publish_mutex_);
  std::string logged_choice_ ABSL_GUARDED_BY(publish_mutex_);  // "auto"
  Mutex mutex_;
  std::string source_address_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<ServerPeer>> peers_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> quarantined_ ABSL_GUARDED_BY(mutex_);
  uint32_t next_attempt_ ABSL_GUARDED_BY(mutex_) = 1;  // rises over all versions, so that a number is never used twice
};

absl::Status Publisher::Check(const WeightId& id, const std::vector<std::string>& addresses) const {
  if (id < last_) {
    return absl::FailedPreconditionError(
        absl::StrCat("publish of ", ToString(id), " refused: ", ToString(last_), " was published before it"));
  }
  if (addresses.size() > kMaxServers) {
    return absl::InvalidArgumentError(
        absl::StrCat(addresses.size(), " rollout servers are more than ", kMaxServers, ", the limit of a group"));
  }
  if (transport_name_ != "auto" && options_.transports.count(transport_name_) == 0) {
    return absl::InvalidArgumentError(absl::StrCat("weight_sync.transport \"", transport_name_,
                                                   "\" is not in this process; set it to one of ",
                                                   TransportNames(options_.transports)));
  }
  if (options_.sync.timeout_seconds() <= 0) {
    return absl::InvalidArgumentError("weight_sync.timeout_seconds must be greater than 0");
  }
  return absl::OkStatus();
}

// The one status of an update that no server took.
absl::Status Combined(const UpdateReport& report) {
  absl::Status worst;
  std::string text = absl::StrCat("no server took ", ToString(WeightId{report.epoch, report.version}));
  for (const ServerUpdate& server : report.servers) {
    if (server.status.ok()) return absl::OkStatus();
    absl::StrAppend(&text, "; ", server.address, ": ", std::string(server.status.message()));
    if (worst.ok() || absl::IsFailedPrecondition(server.status)) worst = server.status;
  }
  return worst.ok() ? worst : absl::Status(worst.code(), text);
}

absl::StatusOr<UpdateReport> Publisher::Publish(uint64_t epoch, uint64_t version, const PublishSource& source,
                                                const std::vector<std::string>& addresses) {
  MutexLock publish_lock(&publish_mutex_);
  const WeightId id{epoch, version};
  absl::Status status = Check(id, addresses);
  if (!status.ok()) return status;
  UpdateRunOptions run;
  std::vector<std::string> excluded;
  {
    MutexLock lock(&mutex_);
    if (!addresses.empty() && source_address_.empty()) {
      return absl::FailedPreconditionError("SetSourceAddress must come before the first Publish");
    }
    run.source_address = source_address_;
    run.first_attempt = TakeAttempts();
    for (const std::string& address : addresses) {
      if (quarantined_.count(address) > 0) {
        excluded.push_back(address);
      } else {
        run.peers.push_back(Peer(address));
      }
    }
  }
  const absl::Time asked = absl::Now();
  run.transport_name = TransportOf(run.peers);
  run.budget = absl::Seconds(options_.sync.timeout_seconds()) - (absl::Now() - asked);
  absl::StatusOr<std::shared_ptr<const WeightSnapshot>> snapshot = Snapshot(id, source, run.transport_name);
  service_.SetSnapshot(snapshot.ok() ? *snapshot : nullptr);
  if (!snapshot.ok()) return snapshot.status();
  last_ = id;
  run.snapshot = *snapshot;
  run.store = store_;
  run.in_flight = options_.sync.in_flight();
  run.transport = options_.transports.at(run.transport_name);
  run.kept = kept_;
  const std::vector<std::shared_ptr<ServerPeer>> peers = run.peers;
  UpdateOutcome outcome = RunUpdate(std::move(run));
  kept_ = outcome.kept;
  {
    MutexLock lock(&mutex_);
    for (size_t i = 0; i < peers.size(); ++i) {
      if (outcome.quarantined[i]) quarantined_.insert(peers[i]->address);
    }
  }
  for (const std::string& address : excluded) {
    outcome.report.servers.push_back(
        {address, absl::DataLossError("quarantined after digest mismatches; CatchUp ends it"), 0});
  }
  status = Combined(outcome.report);
  Record(outcome, status);
  if (!status.ok()) return status;
  return outcome.report;
}

std::string Publisher::TransportOf(const std::vector<std::shared_ptr<ServerPeer>>& peers) {
  if (transport_name_ != "auto") return transport_name_;
  const TransportEnd learner = DescribeThis("the learner", options_.transports);
  const std::vector<TransportEnd> servers =
      learner.bus_id.empty() ? std::vector<TransportEnd>() : DescribeServers(peers, kDescribeTimeout);
  const TransportChoice choice = ChooseTransport(learner, servers);
  const std::string line = absl::StrCat("weight_sync.transport auto: updates go by ", choice.name, ": ", choice.why);
  if (std::exchange(logged_choice_, line) != line) LogInfo(line);
  return choice.name;
}

// On the device where source and transport have theirs there, else in host memory.
absl::StatusOr<std::shared_ptr<const WeightSnapshot>> Publisher::Snapshot(WeightId id, const PublishSource& source,
                                                                          const std::string& transport_name) {
  const TransportKind& transport = options_.transports.at(transport_name);
  const uint64_t bucket_bytes =
      options_.bucket_bytes != 0 ? options_.bucket_bytes : BucketBytes(options_.sync, transport_name);
  if (source.device != nullptr && transport.device != nullptr) {
    service_.BeginSnapshot();
    absl::StatusOr<std::shared_ptr<const WeightSnapshot>> snapshot =
        MakeDeviceSnapshot(options_.config, layout_, options_.dtype, bucket_bytes, id, *source.device, transport.device,
                           absl::Now() + absl::Seconds(options_.sync.timeout_seconds()));
    if (!absl::IsResourceExhausted(snapshot.status())) return snapshot;
    LogWarning("weights ", ToString(id), " go over the host: ", std::string(snapshot.status().message()));
  }
  const absl::StatusOr<ParamSource> params = source.host();
  if (!params.ok()) return params.status();
  return MakeSnapshot(options_.config, layout_, options_.dtype, bucket_bytes, id, *params);
}

void Publisher::Record(const UpdateOutcome& outcome, const absl::Status& status) const {
  for (const ServerUpdate& server : outcome.report.servers) {
    if (!server.status.ok()) {
      LogWarning("weights (epoch ", outcome.report.epoch, ", version ", outcome.report.version, ") not on ",
                 server.address, ": ", server.status.ToString());
    }
  }
  if (!metrics_) return;
  metrics_->CountOutcome(status);
  metrics_->begin_seconds.Observe(outcome.begin_seconds);
  metrics_->transfer_seconds.Observe(outcome.report.transfer_seconds);
  metrics_->commit_seconds.Observe(outcome.commit_seconds);
  metrics_->buckets.Increment(outcome.buckets_sent);
  metrics_->digest_mismatches.Increment(outcome.digest_mismatches);
  double pause = 0;
  for (const ServerUpdate& server : outcome.report.servers) {
    pause = std::max(pause, server.pause_seconds);
    if (server.status.ok()) metrics_->bytes.Increment(static_cast<double>(outcome.report.bytes));
  }
  if (!status.ok()) return;
  metrics_->version.Set(static_cast<double>(outcome.report.version));
  metrics_->pause_seconds.Observe(pause);
}

absl::Status Publisher::CatchUp(const std::string& address) {
  const std::shared_ptr<const WeightSnapshot> snapshot =
      service_.AwaitSnapshot(absl::Seconds(options_.sync.timeout_seconds()));
  if (snapshot == nullptr) return absl::FailedPreconditionError("nothing has been published that a server could pull");
  v1::PullUpdate request;
  request.set_epoch(snapshot->id.epoch);
  request.set_version(snapshot->id.version);
  request.set_timeout_ms(static_cast<uint64_t>(options_.sync.timeout_seconds() * 1e3));
  request.set_in_flight(options_.sync.in_flight());
  {
    MutexLock lock(&mutex_);
    if (source_address_.empty()) return absl::FailedPreconditionError("SetSourceAddress must come before CatchUp");
    request.set_source_address(source_address_);
    request.set_attempt(TakeAttempts());
  }
  const std::shared_ptr<grpc::Channel> channel = MakeChannel(address);
  const double seconds = options_.sync.timeout_seconds();
  if (!channel->WaitForConnected(
          std::chrono::system_clock::now() +
          std::chrono::milliseconds(static_cast<int64_t>(1e3 * std::min<double>(kConnectSeconds, seconds))))) {
    return absl::UnavailableError(absl::StrCat("no connection to rollout server ", address));
  }
  const std::unique_ptr<v1::WeightReceiver::Stub> stub = v1::WeightReceiver::NewStub(channel);
  grpc::ClientContext context;
  SetDeadline(context, seconds);
  v1::Committed response;
  absl::Status status = ToAbslStatus(stub->Pull(&context, request, &response));
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat("rollout server ", address, " could not pull ",
                                                    ToString(snapshot->id), ": ", std::string(status.message())));
  }
  MutexLock lock(&mutex_);
  quarantined_.erase(address);
  return absl::OkStatus();
}

}  // namespace

std::unique_ptr<WeightPublisher> MakeWeightPublisher(const WeightPublisherOptions& options) {
  return std::make_unique<Publisher>(options);
}

}  // namespace lockstep
