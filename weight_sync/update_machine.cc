#include "weight_sync/update_machine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace lockstep {

std::string ToString(const WeightId& id) { return absl::StrCat("(epoch ", id.epoch, ", version ", id.version, ")"); }

const char* ToString(UpdateState state) {
  switch (state) {
    case UpdateState::kIdle:
      return "idle";
    case UpdateState::kPreparing:
      return "preparing";
    case UpdateState::kReceiving:
      return "receiving";
    case UpdateState::kVerifying:
      return "verifying";
    case UpdateState::kCommitted:
      return "committed";
    case UpdateState::kAborted:
      return "aborted";
  }
  return "?";
}

namespace {

std::string ToString(const UpdateKey& key) {
  return absl::StrCat("(epoch ", key.id.epoch, ", version ", key.id.version, ", attempt ", key.attempt, ")");
}

// One transition of a receiver, being made.
class ReceiverStep {
 public:
  ReceiverStep(const ReceiverState& state, const ReceiverEvent& event, absl::Time now) : event_(event), now_(now) {
    out_.next = state;
  }

  ReceiverTransition Run() {
    switch (event_.kind) {
      case ReceiverEvent::Kind::kBegin:
        Begin();
        break;
      case ReceiverEvent::Kind::kPrepared:
        Prepared();
        break;
      case ReceiverEvent::Kind::kReceive:
        Receive();
        break;
      case ReceiverEvent::Kind::kReceived:
        Received();
        break;
      case ReceiverEvent::Kind::kCommit:
        Commit();
        break;
      case ReceiverEvent::Kind::kFlipped:
        Flipped();
        break;
      case ReceiverEvent::Kind::kAbort:
        Abort();
        break;
      case ReceiverEvent::Kind::kTick:
        if (s().busy() && !s().flipping && now_ >= s().deadline) {
          Drop("the sender did not finish within its own budget");
        }
        break;
    }
    return std::move(out_);
  }

 private:
  ReceiverState& s() { return out_.next; }
  // FAILED_PRECONDITION is kept for fencing: whoever gets it is no longer in charge. What belongs to an attempt that is
  // over is ABORTED.
  void Refuse(const std::string& why) {
    const std::string text = absl::StrCat("update ", ToString(event_.key), " refused: ", why);
    out_.answer = event_.key.id < s().seen.id ? absl::FailedPreconditionError(text) : absl::AbortedError(text);
  }
  void Enter(UpdateState state, const std::string& why) {
    s().state = state;
    out_.reason = absl::StrCat("update ", ToString(s().current), " ", lockstep::ToString(state), ": ", why);
  }
  void Drop(const std::string& why) {
    out_.actions.push_back(ReceiverAction::kDropShadow);
    s().deadline = absl::InfiniteFuture();
    s().prepared = false;
    s().digests_match = false;
    s().flipping = false;
    Enter(UpdateState::kAborted, why);
  }
  bool IsCurrent(UpdateState state) { return s().state == state && s().current == event_.key; }

  void Begin() {
    const UpdateKey& key = event_.key;
    if (key.id.epoch < s().seen.id.epoch || key.id.epoch < s().committed.epoch) {
      const WeightId& greater = std::max(s().seen.id, s().committed);
      return Refuse(absl::StrCat("this server has seen ", lockstep::ToString(greater),
                                 "; a learner with a newer epoch is in charge, stop this one"));
    }
    if (key.id == s().committed) {
      out_.answer = absl::AlreadyExistsError(absl::StrCat("already holds ", lockstep::ToString(key.id)));
      return;
    }
    if (key.id < s().committed) {
      return Refuse(absl::StrCat("this server holds ", lockstep::ToString(s().committed), ", and versions only rise"));
    }
    if (key == s().seen && IsCurrent(UpdateState::kPreparing)) return;  // the same once more: same vote
    if (key <= s().seen) return Refuse(absl::StrCat("this server has seen ", ToString(s().seen)));
    if (s().flipping) {
      out_.answer = absl::UnavailableError(absl::StrCat("busy: ", ToString(s().current), " is being committed"));
      return;
    }
    if (event_.budget <= absl::ZeroDuration()) return Refuse("its budget is zero");
    if (s().busy()) Drop("a newer update begins");
    s().seen = key;
    s().current = key;
    s().prepared = false;
    s().deadline = now_ + std::min(event_.budget, kMaxUpdateBudget);
    out_.actions.push_back(ReceiverAction::kPrepare);
    Enter(UpdateState::kPreparing, "begun");
  }

  void Prepared() {
    if (!IsCurrent(UpdateState::kPreparing)) return Refuse("another update or an abort came in between");
    out_.answer = event_.status;
    if (!event_.status.ok()) return Drop(std::string(event_.status.message()));
    s().prepared = true;
  }

  void Receive() {
    if (!IsCurrent(UpdateState::kPreparing) || !s().prepared) {
      return Refuse(absl::StrCat("this server is ", lockstep::ToString(s().state), " ", ToString(s().current)));
    }
    out_.actions.push_back(ReceiverAction::kReceive);
    Enter(UpdateState::kReceiving, "buckets are coming");
  }

  void Received() {
    if (!IsCurrent(UpdateState::kReceiving)) return Refuse("another update or an abort came in between");
    out_.answer = event_.status;
    if (!event_.status.ok()) return Drop(std::string(event_.status.message()));
    s().digests_match = event_.digests_match;
    Enter(UpdateState::kVerifying, event_.digests_match ? "complete, digests equal" : "complete, digests differ");
  }

  void Commit() {
    if (event_.key.id == s().committed) return;  // the same once more, its first answer was lost
    if (!IsCurrent(UpdateState::kVerifying)) {
      return Refuse(absl::StrCat("this server is ", lockstep::ToString(s().state), " ", ToString(s().current)));
    }
    if (s().flipping) {
      out_.answer = absl::UnavailableError(absl::StrCat(ToString(s().current), " is being committed"));
      return;
    }
    if (!s().digests_match) {
      Drop("commit of a set whose digests differ from the manifest");
      out_.answer = absl::DataLossError(
          absl::StrCat("update ", ToString(event_.key), " refused: its digests differ from the manifest"));
      return;
    }
    s().flipping = true;
    s().deadline = absl::InfiniteFuture();
    out_.actions.push_back(ReceiverAction::kFlip);
  }

  void Flipped() {
    if (!IsCurrent(UpdateState::kVerifying) || !s().flipping) return Refuse("no flip is under way");
    out_.answer = event_.status;
    if (!event_.status.ok()) return Drop(std::string(event_.status.message()));
    s().flipping = false;
    s().digests_match = false;
    s().committed = s().current.id;
    Enter(UpdateState::kCommitted, "serving");
  }

  void Abort() {
    const UpdateKey& key = event_.key;
    if (key < s().seen) return;  // of an update that is long over
    if (s().flipping) {
      if (key == s().current) Refuse("it is being committed");
      s().seen = key;
      return;
    }
    if (key == s().current && s().state == UpdateState::kCommitted) return Refuse("it is committed");
    // An abort may overtake its own Begin, which is then refused.
    s().seen = key;
    if (s().busy()) Drop("the sender aborted it");
  }

  const ReceiverEvent& event_;
  const absl::Time now_;
  ReceiverTransition out_;
};

}  // namespace

ReceiverTransition Step(const ReceiverState& state, const ReceiverEvent& event, absl::Time now) {
  return ReceiverStep(state, event, now).Run();
}

}  // namespace lockstep
