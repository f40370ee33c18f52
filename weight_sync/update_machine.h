// The weight protocol as two pure functions: (state, event, now) -> (next state, actions, answer, reason). No clock, no
// network, no memory: publisher.cc and receiver.cc carry out the actions, the simulation test runs the same functions
// against lost, late and doubled events, deaths and restarts. docs/weight_sync.md is the protocol in words.
//
// What they keep, whatever happens:
//   I4  a receiver flips only to a set that is complete and whose digests equal the manifest's
//   I5  the committed (epoch, version) never falls; an event of an older one is refused with FAILED_PRECONDITION, one
//       of an older attempt with ABORTED
//   I8  every state in which something is awaited has a finite deadline
#ifndef LOCKSTEP_WEIGHT_SYNC_UPDATE_MACHINE_H_
#define LOCKSTEP_WEIGHT_SYNC_UPDATE_MACHINE_H_

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace lockstep {

// Compared epoch first: a learner that starts again gets a higher epoch from the ledger and wins with any version.
struct WeightId {
  uint64_t epoch = 0;
  uint64_t version = 0;
  auto operator<=>(const WeightId&) const = default;
};

// One try to bring a version over. Attempts of a version are numbered by its sender and never used twice.
struct UpdateKey {
  WeightId id;
  uint32_t attempt = 0;
  auto operator<=>(const UpdateKey&) const = default;
};

std::string ToString(const WeightId& id);  // "(epoch 2, version 7)"

enum class UpdateState { kIdle, kPreparing, kReceiving, kVerifying, kCommitted, kAborted };
const char* ToString(UpdateState state);

// No update may ask a receiver to hold its shadow for longer.
inline constexpr absl::Duration kMaxUpdateBudget = absl::Hours(1);

// ---- Receiver ----------------------------------------------------------------------------------------------------

struct ReceiverState {
  UpdateState state = UpdateState::kIdle;
  WeightId committed;                            // what is served
  UpdateKey seen;                                // greatest key of any Begin or Abort; never falls
  UpdateKey current;                             // of the update that `state` is about
  bool prepared = false;                         // kPreparing: the shadow is allocated
  bool digests_match = false;                    // kVerifying
  bool flipping = false;                         // kVerifying: the commit is under way, past the point of return
  absl::Time deadline = absl::InfiniteFuture();  // of an update that is neither committed nor aborted

  bool busy() const {
    return state == UpdateState::kPreparing || state == UpdateState::kReceiving || state == UpdateState::kVerifying;
  }
};

struct ReceiverEvent {
  enum class Kind { kBegin, kPrepared, kReceive, kReceived, kCommit, kFlipped, kAbort, kTick };
  Kind kind = Kind::kTick;
  UpdateKey key;
  absl::Duration budget;       // kBegin
  absl::Status status;         // kPrepared, kReceived, kFlipped
  bool digests_match = false;  // kReceived
};

// kDropShadow also closes the transport. It comes before any other action of its transition and is about the update
// that was current before it.
enum class ReceiverAction { kDropShadow, kPrepare, kReceive, kFlip };

struct ReceiverTransition {
  ReceiverState next;
  std::vector<ReceiverAction> actions;
  absl::Status answer;  // for the caller of the RPC, or of the local work, that caused the event
  std::string reason;   // one line for the log when the state changed; empty otherwise
};

ReceiverTransition Step(const ReceiverState& state, const ReceiverEvent& event, absl::Time now);

// ---- Sender ------------------------------------------------------------------------------------------------------

// Tries of one version in one Publish, and digest mismatches of one server before it is quarantined.
inline constexpr uint32_t kMaxAttempts = 3;
inline constexpr int kMaxMismatches = 2;
// A server that does not acknowledge Abort for so long counts as stopped. Also how far Publish may overrun its budget.
inline constexpr absl::Duration kAbortGrace = absl::Seconds(1);

struct SenderServer {
  enum class Phase {
    kWaiting,  // for the next attempt
    kInvited,  // Begin sent
    kReady,    // voted
    kReceiving,
    kReceived,    // complete, digests equal
    kMismatched,  // complete, digests differ
    kAborting,    // Abort sent; the answer shows that it is alive
    kCommitting,
    kCommitted,
    kFailed,
  };
  Phase phase = Phase::kWaiting;
  absl::Status status;  // the failing side's own words
  int mismatches = 0;
  bool quarantined = false;
  bool commit_resent = false;
};

struct SenderState {
  UpdateState state = UpdateState::kIdle;
  UpdateKey key;
  uint32_t attempts = 0;
  absl::Duration budget;
  absl::Time deadline = absl::InfiniteFuture();        // of the update
  absl::Time phase_deadline = absl::InfiniteFuture();  // of what is awaited now
  bool sent = false;                                   // the sender's own side of the transfer is done
  bool finished = false;
  std::vector<SenderServer> servers;
};

struct SenderEvent {
  enum class Kind { kStart, kVote, kSent, kReceived, kAborted, kCommitted, kTick };
  Kind kind = Kind::kTick;
  UpdateKey key;
  int server = 0;
  absl::Status status;
  bool digests_match = false;  // kReceived
  int num_servers = 0;         // kStart
  absl::Duration budget;       // kStart
};

struct SenderAction {
  enum class Kind {
    kBegin,
    kTransfer,        // form a group of `members` (ranks 1..), send, and call Receive on each
    kCloseTransport,  // wake the sender's own side
    kAbort,
    kCommit,
    kFinish,
  };
  Kind kind = Kind::kFinish;
  UpdateKey key;
  int server = 0;
  absl::Time deadline;  // by which an answer counts
  std::vector<int> members;
};

struct SenderTransition {
  SenderState next;
  std::vector<SenderAction> actions;
  std::string reason;
};

SenderTransition Step(const SenderState& state, const SenderEvent& event, absl::Time now);

// Shares of one budget.
absl::Duration BeginShare(absl::Duration budget);   // for votes: a fifth, at most 10 s
absl::Duration CommitShare(absl::Duration budget);  // for commits, which wait for a decode step: a fifth, at most 30 s

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_UPDATE_MACHINE_H_
