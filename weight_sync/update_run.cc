#include "weight_sync/update_run.h"

#include <signal.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "proto/channel.h"
#include "weight_sync/failpoints.h"

namespace lockstep {
namespace {

// RPC deadlines lie a little behind the machine's own, whose words are clearer.
constexpr absl::Duration kCallGrace = absl::Milliseconds(500);

using EventKind = SenderEvent::Kind;

// Answers may come after Run has returned; they hold the queue, not the run.
class EventQueue {
 public:
  void Push(SenderEvent event) {
    MutexLock lock(&mutex_);
    events_.push_back(std::move(event));
    changed_.Signal();
  }
  // The next event, or a tick when `deadline` has passed.
  SenderEvent Pop(absl::Time deadline) {
    MutexLock lock(&mutex_);
    while (events_.empty()) {
      if (changed_.WaitWithDeadline(&mutex_, deadline) && events_.empty()) return SenderEvent();
    }
    SenderEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::deque<SenderEvent> events_ ABSL_GUARDED_BY(mutex_);
};

template <typename Request, typename Response>
struct Call {
  grpc::ClientContext context;
  Request request;
  Response response;
};

// What the answers left behind, written by gRPC's threads.
struct Shared {
  EventQueue queue;
  Mutex mutex;
  std::vector<double> pause_seconds ABSL_GUARDED_BY(mutex);
  int digest_mismatches ABSL_GUARDED_BY(mutex) = 0;
  int buckets_sent ABSL_GUARDED_BY(mutex) = 0;
  // By server: the attempt and the group that its last vote said it keeps.
  std::map<int, std::pair<uint32_t, std::string>> kept ABSL_GUARDED_BY(mutex);
  // Of an attempt: members whose buckets arrived and are right, and whether the sender's part was well.
  std::map<uint32_t, int> received ABSL_GUARDED_BY(mutex);
  std::set<uint32_t> sent ABSL_GUARDED_BY(mutex);
};

struct Transfer {
  std::shared_ptr<WeightTransport> transport;
  std::string prefix;
  uint32_t attempt = 0;
  std::string group;  // a kept one's name, or the prefix
  std::vector<int> members;
  std::thread thread;
};

class Run {
 public:
  explicit Run(UpdateRunOptions options) : options_(std::move(options)) {
    MutexLock lock(&shared_->mutex);
    shared_->pause_seconds.resize(options_.peers.size());
  }

  UpdateOutcome Execute() {
    begun_ = absl::Now();
    SenderEvent event;
    event.kind = EventKind::kStart;
    event.key = {options_.snapshot->id, options_.first_attempt};
    event.num_servers = static_cast<int>(options_.peers.size());
    event.budget = options_.budget;
    while (true) {
      const UpdateState before = state_.state;
      SenderTransition transition = Step(state_, event, absl::Now());
      state_ = std::move(transition.next);
      if (!transition.reason.empty()) LogInfo(transition.reason);
      NoteTimes(before);
      for (const SenderAction& action : transition.actions) Carry(action, transition.reason);
      if (state_.finished) break;
      event = shared_->queue.Pop(state_.phase_deadline);
    }
    CloseTransfers();
    return Outcome();
  }

 private:
  void Carry(const SenderAction& action, const std::string& reason) {
    switch (action.kind) {
      case SenderAction::Kind::kBegin:
        return Begin(action);
      case SenderAction::Kind::kTransfer:
        return StartTransfer(action);
      case SenderAction::Kind::kCloseTransport:
        if (!transfers_.empty()) transfers_.back().transport->Close();
        return;
      case SenderAction::Kind::kAbort:
        return Abort(action, reason);
      case SenderAction::Kind::kCommit:
        return Commit(action);
      case SenderAction::Kind::kFinish:
        return;
    }
  }

  template <typename Request, typename Response>
  std::shared_ptr<Call<Request, Response>> MakeCall(const SenderAction& action) const {
    auto call = std::make_shared<Call<Request, Response>>();
    call->request.set_epoch(action.key.id.epoch);
    call->request.set_version(action.key.id.version);
    call->request.set_attempt(action.key.attempt);
    const absl::Time deadline = std::max(action.deadline, absl::Now()) + kCallGrace;
    SetDeadline(call->context, absl::ToDoubleSeconds(deadline - absl::Now()));
    return call;
  }
  static SenderEvent Answer(const SenderAction& action, int server, EventKind kind, const grpc::Status& status) {
    SenderEvent event;
    event.kind = kind;
    event.key = action.key;
    event.server = server;
    event.status = ToAbslStatus(status);
    return event;
  }

  void Begin(const SenderAction& action) {
    auto call = MakeCall<v1::BeginUpdate, v1::Vote>(action);
    *call->request.mutable_manifest() = options_.snapshot->manifest;
    call->request.set_transport(options_.transport_name);
    call->request.set_store_address(options_.source_address);
    call->request.set_timeout_ms(
        static_cast<uint64_t>(absl::ToInt64Milliseconds(state_.deadline - absl::Now() + kAbortGrace)));
    auto peer = options_.peers[static_cast<size_t>(action.server)];
    peer->update->async()->Begin(&call->context, &call->request, &call->response,
                                 [call, action, peer, shared = shared_](const grpc::Status& status) {
                                   SenderEvent event = Answer(action, action.server, EventKind::kVote, status);
                                   if (event.status.ok() && !call->response.ready()) {
                                     event.status = absl::InvalidArgumentError(call->response.reason());
                                   }
                                   if (event.status.ok()) {
                                     MutexLock lock(&shared->mutex);
                                     shared->kept[action.server] = {action.key.attempt, call->response.kept_group()};
                                   }
                                   shared->queue.Push(std::move(event));
                                 });
  }

  void StartTransfer(const SenderAction& action) {
    Transfer transfer;
    transfer.prefix =
        absl::StrCat("weights/", action.key.id.epoch, "/", action.key.id.version, "/", action.key.attempt);
    transfer.transport = options_.transport.make(MakeLocalGroupTable(options_.store, transfer.prefix));
    transfer.attempt = action.key.attempt;
    transfer.members = action.members;
    TransportGroup group;
    group.size = static_cast<int>(action.members.size()) + 1;
    group.route_to = RouteTo(action.members);
    group.name = transfer.prefix;
    group.kept = KeptBy(action);
    transfer.group = group.kept.empty() ? group.name : group.kept;
    for (size_t i = 0; i < action.members.size(); ++i) Receive(action, i, transfer.prefix, group.kept);
    transfer.thread = std::thread([this, action, group, transport = transfer.transport] {
      SenderEvent event;
      event.kind = EventKind::kSent;
      event.key = action.key;
      event.status = Send(*transport, group, action.deadline);
      if (event.status.ok()) {
        MutexLock lock(&shared_->mutex);
        shared_->sent.insert(action.key.attempt);
      }
      shared_->queue.Push(std::move(event));
    });
    transfers_.push_back(std::move(transfer));
  }

  // The group of the last run, where this process and every member in its place say that they keep it; else "".
  std::string KeptBy(const SenderAction& action) {
    if (options_.kept.group.empty() || options_.kept.addresses.size() != action.members.size() ||
        options_.transport.kept == nullptr || options_.transport.kept() != options_.kept.group) {
      return "";
    }
    MutexLock lock(&shared_->mutex);
    for (size_t i = 0; i < action.members.size(); ++i) {
      const auto [attempt, group] = shared_->kept[action.members[i]];
      if (options_.peers[static_cast<size_t>(action.members[i])]->address != options_.kept.addresses[i] ||
          attempt != action.key.attempt || group != options_.kept.group) {
        return "";
      }
    }
    return options_.kept.group;
  }

  // A member on another machine where there is one: the local address towards it serves those on this machine as well.
  std::string RouteTo(const std::vector<int>& members) const {
    for (const int member : members) {
      const std::string& address = options_.peers[static_cast<size_t>(member)]->address;
      if (address.compare(0, 4, "127.") != 0 && address.compare(0, 9, "localhost") != 0 &&
          address.compare(0, 5, "[::1]") != 0) {
        return address;
      }
    }
    return options_.peers[static_cast<size_t>(members[0])]->address;
  }

  absl::Status Send(WeightTransport& transport, const TransportGroup& group, absl::Time deadline) {
    absl::Status status = transport.Join(group, JoinDeadline(transport, absl::Now(), deadline));
    const WeightSnapshot& snapshot = *options_.snapshot;
    for (size_t i = 0; i < snapshot.plan.buckets.size() && status.ok(); ++i) {
      if (FailpointFires("sender.die")) raise(SIGKILL);
      if (FailpointFires("sender.stop")) raise(SIGSTOP);
      const uint64_t bytes = snapshot.plan.buckets[i].bytes;
      status = transport.Send(i, snapshot.BucketData(i), bytes, BucketDeadline(bytes, absl::Now(), deadline));
      if (status.ok()) {
        MutexLock lock(&shared_->mutex);
        ++shared_->buckets_sent;
      }
    }
    return status.ok() ? transport.Finish(BucketDeadline(2 * snapshot.plan.max_bytes, absl::Now(), deadline)) : status;
  }

  void Receive(const SenderAction& action, size_t member, const std::string& prefix, const std::string& kept) {
    const int server = action.members[member];
    auto call = MakeCall<v1::ReceiveBuckets, v1::Received>(action);
    call->request.set_store_prefix(prefix);
    call->request.set_kept_group(kept);
    call->request.set_rank(static_cast<uint32_t>(member + 1));
    call->request.set_world_size(static_cast<uint32_t>(action.members.size() + 1));
    auto peer = options_.peers[static_cast<size_t>(server)];
    peer->update->async()->Receive(
        &call->context, &call->request, &call->response,
        [call, action, server, peer, shared = shared_, expected = digests_](const grpc::Status& status) {
          SenderEvent event = Answer(action, server, EventKind::kReceived, status);
          const auto& digests = call->response.bucket_digests();
          int mismatches = digests.size() == static_cast<int>(expected->size()) ? 0 : 1;
          for (int i = 0; i < digests.size() && mismatches == 0; ++i) {
            if (digests[i] != (*expected)[static_cast<size_t>(i)]) ++mismatches;
          }
          event.digests_match = mismatches == 0;
          if (status.ok()) {
            MutexLock lock(&shared->mutex);
            shared->digest_mismatches += mismatches;
            if (event.digests_match) ++shared->received[action.key.attempt];
          }
          shared->queue.Push(std::move(event));
        });
  }

  void Abort(const SenderAction& action, const std::string& reason) {
    auto call = MakeCall<v1::AbortUpdate, v1::Aborted>(action);
    call->request.set_reason(reason);
    auto peer = options_.peers[static_cast<size_t>(action.server)];
    peer->control->async()->Abort(&call->context, &call->request, &call->response,
                                  [call, action, peer, shared = shared_](const grpc::Status& status) {
                                    shared->queue.Push(Answer(action, action.server, EventKind::kAborted, status));
                                  });
  }

  void Commit(const SenderAction& action) {
    auto call = MakeCall<v1::CommitUpdate, v1::Committed>(action);
    call->request.set_in_flight(options_.in_flight);
    auto peer = options_.peers[static_cast<size_t>(action.server)];
    peer->control->async()->Commit(&call->context, &call->request, &call->response,
                                   [call, action, peer, shared = shared_](const grpc::Status& status) {
                                     if (status.ok()) {
                                       MutexLock lock(&shared->mutex);
                                       shared->pause_seconds[static_cast<size_t>(action.server)] =
                                           call->response.pause_seconds();
                                     }
                                     shared->queue.Push(Answer(action, action.server, EventKind::kCommitted, status));
                                   });
  }

  // Seconds by phase, over all attempts.
  void NoteTimes(UpdateState before) {
    const absl::Time now = absl::Now();
    if (before != state_.state) {
      const double seconds = absl::ToDoubleSeconds(now - phase_begun_);
      if (before == UpdateState::kPreparing) outcome_.begin_seconds += seconds;
      if (before == UpdateState::kReceiving) outcome_.report.transfer_seconds += seconds;
      if (before == UpdateState::kVerifying) outcome_.commit_seconds += seconds;
      phase_begun_ = now;
    }
  }

  void CloseTransfers() {
    for (Transfer& transfer : transfers_) {
      // The last one, if all members have all of it: they keep their end as well.
      if (&transfer == &transfers_.back() && Complete(transfer)) {
        transfer.thread.join();
        transfer.transport->Keep();
        outcome_.kept.group = transfer.group;
        for (const int member : transfer.members) {
          outcome_.kept.addresses.push_back(options_.peers[static_cast<size_t>(member)]->address);
        }
      } else {
        transfer.transport->Close();
        transfer.thread.join();
      }
      options_.store->ErasePrefix(transfer.prefix + "/");
    }
  }
  bool Complete(const Transfer& transfer) {
    MutexLock lock(&shared_->mutex);
    return shared_->sent.count(transfer.attempt) > 0 &&
           shared_->received[transfer.attempt] == static_cast<int>(transfer.members.size());
  }

  UpdateOutcome Outcome() {
    UpdateReport& report = outcome_.report;
    report.epoch = options_.snapshot->id.epoch;
    report.version = options_.snapshot->id.version;
    report.bytes = options_.snapshot->plan.total_bytes;
    report.seconds = absl::ToDoubleSeconds(absl::Now() - begun_);
    MutexLock lock(&shared_->mutex);
    outcome_.digest_mismatches = shared_->digest_mismatches;
    outcome_.buckets_sent = shared_->buckets_sent;
    for (size_t i = 0; i < options_.peers.size(); ++i) {
      const SenderServer& server = state_.servers[i];
      report.servers.push_back({options_.peers[i]->address, server.status, shared_->pause_seconds[i]});
      outcome_.quarantined.push_back(server.quarantined);
    }
    return std::move(outcome_);
  }

  const UpdateRunOptions options_;
  // Of the snapshot, which answers that come late must not hold: its memory is that of the next one.
  const std::shared_ptr<const std::vector<uint64_t>> digests_ =
      std::make_shared<const std::vector<uint64_t>>(options_.snapshot->digests);
  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  SenderState state_;
  std::vector<Transfer> transfers_;
  absl::Time begun_;
  absl::Time phase_begun_ = absl::Now();
  UpdateOutcome outcome_;
};

}  // namespace

std::shared_ptr<ServerPeer> MakeServerPeer(const std::string& address) {
  auto peer = std::make_shared<ServerPeer>();
  peer->address = address;
  peer->update = v1::WeightReceiver::NewStub(MakeChannel(address));
  peer->control = v1::WeightReceiver::NewStub(MakeChannel(address));
  return peer;
}

UpdateOutcome RunUpdate(UpdateRunOptions options) { return Run(std::move(options)).Execute(); }

}  // namespace lockstep
