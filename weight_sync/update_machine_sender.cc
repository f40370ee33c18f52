// The sender's half of update_machine.h.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "weight_sync/update_machine.h"

namespace lockstep {
namespace {

using Phase = SenderServer::Phase;

class SenderStep {
 public:
  SenderStep(const SenderState& state, const SenderEvent& event, absl::Time now) : event_(event), now_(now) {
    out_.next = state;
  }

  SenderTransition Run() {
    if (event_.kind == SenderEvent::Kind::kStart) {
      Start();
    } else if (!s().finished) {
      if (event_.kind == SenderEvent::Kind::kTick) {
        Tick();
      } else if (event_.key == s().key) {  // answers to older attempts come too late
        Answer();
      }
    }
    return std::move(out_);
  }

 private:
  SenderState& s() { return out_.next; }
  absl::Time hard_deadline() { return s().deadline + kAbortGrace; }
  int Count(Phase phase) {
    return static_cast<int>(std::count_if(s().servers.begin(), s().servers.end(),
                                          [phase](const SenderServer& server) { return server.phase == phase; }));
  }
  void Act(SenderAction::Kind kind, int server = 0) {
    SenderAction action;
    action.kind = kind;
    action.key = s().key;
    action.server = server;
    action.deadline = s().phase_deadline;
    out_.actions.push_back(std::move(action));
  }
  void Enter(UpdateState state, const std::string& why) {
    s().state = state;
    out_.reason =
        absl::StrCat("update ", ToString(s().key.id), " attempt ", s().attempts, " ", ToString(state), ": ", why);
  }
  void Fail(SenderServer& server, const absl::Status& status) {
    server.phase = Phase::kFailed;
    if (server.status.ok()) server.status = status;
  }

  void Start() {
    s() = SenderState();
    s().key = event_.key;
    s().budget = event_.budget;
    s().deadline = now_ + event_.budget;
    s().servers.resize(static_cast<size_t>(event_.num_servers));
    BeginAttempt();
  }

  void BeginAttempt() {
    ++s().attempts;
    if (s().attempts > 1) ++s().key.attempt;
    s().sent = false;
    s().phase_deadline = std::min(s().deadline, now_ + BeginShare(s().budget));
    Enter(UpdateState::kPreparing, absl::StrCat(Count(Phase::kWaiting), " servers asked"));
    for (size_t i = 0; i < s().servers.size(); ++i) {
      SenderServer& server = s().servers[i];
      if (server.phase != Phase::kWaiting) continue;
      server.phase = Phase::kInvited;
      server.status = absl::OkStatus();
      Act(SenderAction::Kind::kBegin, static_cast<int>(i));
    }
    Advance();
  }

  void Answer() {
    if (event_.kind == SenderEvent::Kind::kSent) {
      if (s().state != UpdateState::kReceiving) return;
      if (!event_.status.ok()) return FailTransfer(event_.status);
      s().sent = true;
      return Advance();
    }
    if (event_.server < 0 || event_.server >= static_cast<int>(s().servers.size())) return;
    SenderServer& server = s().servers[static_cast<size_t>(event_.server)];
    switch (event_.kind) {
      case SenderEvent::Kind::kVote:
        return Vote(server);
      case SenderEvent::Kind::kReceived:
        return Received(server);
      case SenderEvent::Kind::kAborted:
        return Aborted(server);
      case SenderEvent::Kind::kCommitted:
        return Committed(server);
      default:
        return;
    }
  }

  void Vote(SenderServer& server) {
    if (server.phase != Phase::kInvited) return;
    if (event_.status.ok()) {
      server.phase = Phase::kReady;
    } else if (absl::IsAlreadyExists(event_.status)) {
      server.phase = Phase::kCommitted;  // an earlier commit whose answer was lost
    } else {
      Fail(server, event_.status);
    }
    Advance();
  }

  void Received(SenderServer& server) {
    if (server.phase != Phase::kReceiving) return;
    if (!event_.status.ok()) {
      server.status = event_.status;
      return FailTransfer(event_.status);
    }
    server.phase = event_.digests_match ? Phase::kReceived : Phase::kMismatched;
    Advance();
  }

  void Aborted(SenderServer& server) {
    if (server.phase != Phase::kAborting) return;
    if (event_.status.ok()) {
      server.phase = Phase::kWaiting;
    } else {
      Fail(server, event_.status);
    }
    Advance();
  }

  void Committed(SenderServer& server) {
    if (server.phase != Phase::kCommitting) return;
    if (event_.status.ok()) {
      server.phase = Phase::kCommitted;
    } else if (!server.commit_resent && now_ < s().phase_deadline &&
               (absl::IsUnavailable(event_.status) || absl::IsDeadlineExceeded(event_.status))) {
      server.commit_resent = true;  // commits may be repeated; the first may have arrived
      Act(SenderAction::Kind::kCommit, event_.server);
    } else {
      const bool unknown = absl::IsUnavailable(event_.status) || absl::IsDeadlineExceeded(event_.status);
      Fail(server,
           absl::Status(event_.status.code(),
                        absl::StrCat(unknown ? "commit not acknowledged, the server holds either version whole: "
                                             : "commit refused: ",
                                     std::string(event_.status.message()))));
    }
    Advance();
  }

  void Tick() {
    if (now_ < s().phase_deadline) return;
    const absl::Status late = absl::DeadlineExceededError(absl::StrCat("no answer while ", ToString(s().state),
                                                                       " within the deadline; the process is stopped, "
                                                                       "overloaded or unreachable"));
    if (s().state == UpdateState::kReceiving) {
      return FailTransfer(absl::DeadlineExceededError("the update's budget ran out while buckets were sent"));
    }
    for (size_t i = 0; i < s().servers.size(); ++i) {
      SenderServer& server = s().servers[i];
      if (server.phase == Phase::kInvited) {
        Fail(server, late);
        Act(SenderAction::Kind::kAbort, static_cast<int>(i));  // if it ever hears: the Begin is void
      } else if (server.phase == Phase::kAborting || server.phase == Phase::kCommitting) {
        Fail(server, late);
      }
    }
    Advance();
  }

  // The transfer cannot succeed for those that have not received everything. Who of them still answers is asked by
  // Abort: the collective's own errors differ by rank and do not name the culprit.
  void FailTransfer(const absl::Status& why) {
    s().phase_deadline = std::min(hard_deadline(), now_ + kAbortGrace);
    Enter(UpdateState::kAborted, std::string(why.message()));
    Act(SenderAction::Kind::kCloseTransport);
    for (size_t i = 0; i < s().servers.size(); ++i) {
      SenderServer& server = s().servers[i];
      if (server.phase != Phase::kReceiving) continue;
      server.phase = Phase::kAborting;
      Act(SenderAction::Kind::kAbort, static_cast<int>(i));
    }
    Advance();
  }

  // Moves on when nothing of the present phase is awaited any more.
  void Advance() {
    switch (s().state) {
      case UpdateState::kPreparing:
        if (Count(Phase::kInvited) == 0) StartTransfer();
        return;
      case UpdateState::kReceiving:
        if (s().sent && Count(Phase::kReceiving) == 0) Verify();
        return;
      case UpdateState::kAborted:
        if (Count(Phase::kAborting) == 0) Verify();
        return;
      case UpdateState::kVerifying:
        if (Count(Phase::kCommitting) == 0 && Count(Phase::kAborting) == 0) RetryOrFinish();
        return;
      default:
        return;
    }
  }

  void StartTransfer() {
    if (Count(Phase::kReady) == 0) return RetryOrFinish();
    const absl::Duration left = s().deadline - now_;
    s().phase_deadline = now_ + std::max(left / 2, left - CommitShare(s().budget));
    SenderAction transfer;
    transfer.kind = SenderAction::Kind::kTransfer;
    transfer.key = s().key;
    transfer.deadline = s().phase_deadline;
    for (size_t i = 0; i < s().servers.size(); ++i) {
      if (s().servers[i].phase != Phase::kReady) continue;
      s().servers[i].phase = Phase::kReceiving;
      transfer.members.push_back(static_cast<int>(i));
    }
    Enter(UpdateState::kReceiving, absl::StrCat(transfer.members.size(), " servers in the group"));
    out_.actions.push_back(std::move(transfer));
  }

  void Verify() {
    s().phase_deadline = std::min(hard_deadline(), now_ + CommitShare(s().budget));
    Enter(UpdateState::kVerifying, absl::StrCat(Count(Phase::kReceived), " complete and equal, ",
                                                Count(Phase::kMismatched), " with other digests"));
    for (size_t i = 0; i < s().servers.size(); ++i) {
      SenderServer& server = s().servers[i];
      if (server.phase == Phase::kReceived) {
        server.phase = Phase::kCommitting;
        Act(SenderAction::Kind::kCommit, static_cast<int>(i));
      } else if (server.phase == Phase::kMismatched) {
        Mismatched(server, static_cast<int>(i));
      }
    }
    Advance();
  }

  void Mismatched(SenderServer& server, int index) {
    ++server.mismatches;
    server.status = absl::DataLossError(absl::StrCat("digests of the received buckets differ from the manifest (",
                                                     server.mismatches, " of ", kMaxMismatches, " times)"));
    if (server.mismatches >= kMaxMismatches) {
      server.quarantined = true;
      server.phase = Phase::kFailed;
    } else {
      server.phase = Phase::kAborting;
    }
    Act(SenderAction::Kind::kAbort, index);
  }

  void RetryOrFinish() {
    // A shorter rest than a begin and a commit need would only end in another abort.
    const absl::Duration needed = std::min(absl::Seconds(2), s().budget / 10);
    if (Count(Phase::kWaiting) > 0 && s().attempts < kMaxAttempts && s().deadline - now_ > needed) {
      return BeginAttempt();
    }
    for (SenderServer& server : s().servers) {
      if (server.phase == Phase::kCommitted) {
        server.status = absl::OkStatus();
      } else if (server.phase != Phase::kFailed) {
        Fail(server, absl::AbortedError(absl::StrCat("given up after ", s().attempts, " attempts")));
      }
    }
    s().finished = true;
    s().phase_deadline = absl::InfiniteFuture();
    const int committed = Count(Phase::kCommitted);
    Enter(committed > 0 || s().servers.empty() ? UpdateState::kCommitted : UpdateState::kAborted,
          absl::StrCat(committed, " of ", s().servers.size(), " servers committed"));
    Act(SenderAction::Kind::kFinish);
  }

  const SenderEvent& event_;
  const absl::Time now_;
  SenderTransition out_;
};

}  // namespace

absl::Duration BeginShare(absl::Duration budget) { return std::min(budget / 5, absl::Seconds(10)); }
absl::Duration CommitShare(absl::Duration budget) { return std::min(budget / 5, absl::Seconds(30)); }

SenderTransition Step(const SenderState& state, const SenderEvent& event, absl::Time now) {
  return SenderStep(state, event, now).Run();
}

}  // namespace lockstep
