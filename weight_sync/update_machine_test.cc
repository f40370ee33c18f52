// The two machines against a simulated cluster: messages that are lost, doubled, late and reordered; receivers and
// senders that die and start again; two senders at once. Virtual time, one seed a run.
#include "weight_sync/update_machine.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <queue>
#include <random>

#include "absl/strings/str_cat.h"

namespace lockstep {
namespace {

const absl::Time kStart = absl::UnixEpoch();

ReceiverEvent Event(ReceiverEvent::Kind kind, uint64_t epoch, uint64_t version, uint32_t attempt = 1) {
  ReceiverEvent event;
  event.kind = kind;
  event.key = {{epoch, version}, attempt};
  event.budget = absl::Seconds(10);
  return event;
}

ReceiverState After(ReceiverState state, const std::vector<ReceiverEvent>& events) {
  for (const ReceiverEvent& event : events) state = Step(state, event, kStart).next;
  return state;
}

using Kind = ReceiverEvent::Kind;

TEST(ReceiverMachineTest, ACompleteUpdateCommits) {
  ReceiverEvent received = Event(Kind::kReceived, 1, 1);
  received.digests_match = true;
  const ReceiverState ready =
      After({}, {Event(Kind::kBegin, 1, 1), Event(Kind::kPrepared, 1, 1), Event(Kind::kReceive, 1, 1), received});
  const ReceiverTransition commit = Step(ready, Event(Kind::kCommit, 1, 1), kStart);
  EXPECT_EQ(commit.actions, std::vector<ReceiverAction>{ReceiverAction::kFlip});
  const ReceiverTransition flipped = Step(commit.next, Event(Kind::kFlipped, 1, 1), kStart);
  EXPECT_EQ(flipped.next.committed, (WeightId{1, 1}));
  EXPECT_EQ(flipped.next.state, UpdateState::kCommitted);
  // The answer was lost, the sender asks once more.
  const ReceiverTransition again = Step(flipped.next, Event(Kind::kCommit, 1, 1), kStart);
  EXPECT_TRUE(again.answer.ok());
  EXPECT_TRUE(again.actions.empty());
}

TEST(ReceiverMachineTest, AnOlderEpochIsRefusedAndBothNumbersAreNamed) {
  const ReceiverState state = After({}, {Event(Kind::kBegin, 3, 7)});
  const ReceiverTransition refused = Step(state, Event(Kind::kBegin, 2, 9), kStart);
  EXPECT_EQ(refused.answer.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(refused.answer.message().find("epoch 2, version 9"), absl::string_view::npos) << refused.answer;
  EXPECT_NE(refused.answer.message().find("epoch 3, version 7"), absl::string_view::npos) << refused.answer;
  EXPECT_TRUE(refused.actions.empty());
  EXPECT_EQ(refused.next.current.id, (WeightId{3, 7}));
}

TEST(ReceiverMachineTest, ANewerUpdateReplacesOneUnderWay) {
  const ReceiverState state = After({}, {Event(Kind::kBegin, 1, 1), Event(Kind::kPrepared, 1, 1)});
  const ReceiverTransition newer = Step(state, Event(Kind::kBegin, 1, 1, 2), kStart);
  EXPECT_EQ(newer.actions, (std::vector<ReceiverAction>{ReceiverAction::kDropShadow, ReceiverAction::kPrepare}));
  // What the older one still reports is void.
  EXPECT_FALSE(Step(newer.next, Event(Kind::kPrepared, 1, 1), kStart).answer.ok());
  EXPECT_FALSE(Step(newer.next, Event(Kind::kReceive, 1, 1), kStart).answer.ok());
}

TEST(ReceiverMachineTest, AnAbortThatOvertakesItsBeginWins) {
  const ReceiverState state = After({}, {Event(Kind::kAbort, 1, 1)});
  EXPECT_EQ(Step(state, Event(Kind::kBegin, 1, 1), kStart).answer.code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(Step(state, Event(Kind::kBegin, 1, 1, 2), kStart).answer.ok());
}

TEST(ReceiverMachineTest, ASilentSenderEndsAtItsOwnDeadline) {
  ReceiverState state = After({}, {Event(Kind::kBegin, 1, 1), Event(Kind::kPrepared, 1, 1)});
  EXPECT_EQ(state.deadline, kStart + absl::Seconds(10));
  EXPECT_TRUE(Step(state, ReceiverEvent(), kStart + absl::Seconds(9)).actions.empty());
  const ReceiverTransition late = Step(state, ReceiverEvent(), kStart + absl::Seconds(10));
  EXPECT_EQ(late.actions, std::vector<ReceiverAction>{ReceiverAction::kDropShadow});
  EXPECT_EQ(late.next.state, UpdateState::kAborted);
  EXPECT_EQ(late.next.deadline, absl::InfiniteFuture());
}

TEST(ReceiverMachineTest, ASetWithOtherDigestsIsNeverCommitted) {
  const ReceiverState state = After({}, {Event(Kind::kBegin, 1, 1), Event(Kind::kPrepared, 1, 1),
                                         Event(Kind::kReceive, 1, 1), Event(Kind::kReceived, 1, 1)});
  const ReceiverTransition commit = Step(state, Event(Kind::kCommit, 1, 1), kStart);
  EXPECT_EQ(commit.answer.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(commit.actions, std::vector<ReceiverAction>{ReceiverAction::kDropShadow});
  EXPECT_EQ(commit.next.committed, WeightId());
}

// ---- Simulation --------------------------------------------------------------------------------------------------

struct Faults {
  double loss = 0;
  double duplicate = 0;
  double late = 0;        // a message takes up to 8 s
  double corrupt = 0;     // a transfer ends with other bytes
  double fail = 0;        // a transfer ends with an error on one side
  double stuck = 0;       // a transfer never ends by itself
  double unprepared = 0;  // no memory for the shadow
  int receiver_deaths = 0;
  int sender_deaths = 0;
  bool split_brain = false;
};

struct Tally {
  int updates = 0, committed_servers = 0, failed_servers = 0, retries = 0, flips = 0, refused = 0, drops = 0,
      quarantined = 0, deaths = 0;
};

class Simulation {
 public:
  Simulation(uint64_t seed, const Faults& faults, int num_receivers, Tally* tally)
      : random_(seed), faults_(faults), receivers_(static_cast<size_t>(num_receivers)), tally_(tally) {}

  void Run(int versions) {
    StartSender(1, versions);
    for (int i = 0; i < faults_.receiver_deaths; ++i) {
      At(Uniform(0, 30), [this] { KillReceiver(static_cast<int>(random_() % receivers_.size())); });
    }
    for (int i = 0; i < faults_.sender_deaths; ++i) {
      At(Uniform(0, 30), [this, versions] {
        ++tally_->deaths;
        if (!faults_.split_brain) senders_.back()->dead = true;
        At(Uniform(0, 5), [this, versions] { StartSender(senders_.back()->epoch + 1, versions); });
      });
    }
    int events = 0;
    while (!queue_.empty()) {
      ASSERT_LT(++events, 200000) << "the protocol does not come to rest";
      const Entry entry = queue_.top();
      queue_.pop();
      now_ = entry.time;
      (*entry.work)();
      if (::testing::Test::HasFatalFailure()) return;
    }
    AtRest();
  }

 private:
  struct Receiver {
    int incarnation = 0;
    ReceiverState state;
    // The real things behind the actions.
    bool shadow = false, complete = false, corrupt = false;
    UpdateKey shadow_key;
    WeightId serving;
    WeightId greatest_seen;  // of accepted Begins, to check fencing from outside
  };
  struct Sender {
    uint64_t epoch = 0;
    uint64_t version = 0;
    int last_version = 0;
    uint32_t next_attempt = 1;
    bool dead = false;
    SenderState state;
    absl::Time begun;
  };
  struct Entry {
    absl::Time time;
    uint64_t sequence;
    std::shared_ptr<std::function<void()>> work;
    bool operator<(const Entry& other) const {
      return time != other.time ? time > other.time : sequence > other.sequence;
    }
  };

  double Uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }
  bool Chance(double p) { return Uniform(0, 1) < p; }
  void At(double seconds, std::function<void()> work) { AtTime(now_ + absl::Seconds(seconds), std::move(work)); }
  void AtTime(absl::Time time, std::function<void()> work) {
    queue_.push({std::max(time, now_), sequence_++, std::make_shared<std::function<void()>>(std::move(work))});
  }
  // A message: lost, doubled, late.
  void Message(const std::function<void()>& arrive) {
    const int copies = Chance(faults_.duplicate) ? 2 : 1;
    for (int i = 0; i < copies; ++i) {
      if (Chance(faults_.loss)) continue;
      At(Chance(faults_.late) ? Uniform(0, 8) : Uniform(0.001, 0.02), arrive);
    }
  }

  void KillReceiver(int index) {
    ++tally_->deaths;
    Receiver& receiver = receivers_[static_cast<size_t>(index)];
    const int incarnation = receiver.incarnation + 1;
    receiver = Receiver();  // base weights, (0, 0)
    receiver.incarnation = incarnation;
  }

  void ToReceiver(int index, int incarnation, const ReceiverEvent& event,
                  const std::function<void(const absl::Status&)>& answer) {
    Receiver& receiver = receivers_[static_cast<size_t>(index)];
    if (receiver.incarnation != incarnation) return;  // local work of a process that is gone
    const ReceiverState before = receiver.state;
    ReceiverTransition transition = Step(before, event, now_);
    receiver.state = transition.next;
    // I5: neither what is served nor what has been seen ever falls.
    ASSERT_GE(receiver.state.committed, before.committed);
    ASSERT_GE(receiver.state.seen, before.seen);
    if (event.kind == Kind::kBegin && !transition.actions.empty()) {
      ASSERT_GE(event.key.id, receiver.greatest_seen);
      receiver.greatest_seen = event.key.id;
    }
    if (!transition.answer.ok()) ++tally_->refused;
    // I8: whoever is busy has a deadline, or flips.
    if (receiver.state.busy() && !receiver.state.flipping) {
      ASSERT_LT(receiver.state.deadline, absl::InfiniteFuture());
      AtTime(receiver.state.deadline, [=, this] { ToReceiver(index, incarnation, ReceiverEvent(), nullptr); });
    }
    for (const ReceiverAction action : transition.actions) Carry(index, action, event.key, answer);
    const bool later = !transition.actions.empty() && transition.actions.back() != ReceiverAction::kDropShadow;
    if (answer && !later) answer(transition.answer);
  }

  void Carry(int index, ReceiverAction action, const UpdateKey& key,
             const std::function<void(const absl::Status&)>& answer) {
    Receiver& receiver = receivers_[static_cast<size_t>(index)];
    const int incarnation = receiver.incarnation;
    const auto local = [=, this](double seconds, ReceiverEvent event) {
      event.key = key;
      At(seconds, [=, this] { ToReceiver(index, incarnation, event, answer); });
    };
    ReceiverEvent event;
    switch (action) {
      case ReceiverAction::kDropShadow:
        ++tally_->drops;
        receiver.shadow = false;
        return;
      case ReceiverAction::kPrepare:
        ASSERT_FALSE(receiver.shadow) << "a second shadow beside the first";
        event.kind = Kind::kPrepared;
        if (Chance(faults_.unprepared)) event.status = absl::ResourceExhaustedError("no memory");
        receiver.shadow = true;
        receiver.complete = receiver.corrupt = false;
        receiver.shadow_key = key;
        return local(Uniform(0.001, 0.1), event);
      case ReceiverAction::kReceive:
        event.kind = Kind::kReceived;
        if (Chance(faults_.stuck)) return;
        if (Chance(faults_.fail)) event.status = absl::AbortedError("connection closed by peer");
        event.digests_match = !Chance(faults_.corrupt);
        At(Uniform(0.01, 1.0), [=, this] {
          Receiver& now = receivers_[static_cast<size_t>(index)];
          if (now.incarnation == incarnation && now.shadow && now.shadow_key == key && event.status.ok()) {
            now.complete = true;
            now.corrupt = !event.digests_match;
          }
          ReceiverEvent done = event;
          done.key = key;
          ToReceiver(index, incarnation, done, answer);
        });
        return;
      case ReceiverAction::kFlip:
        // I4: complete, equal, and the set that was asked for.
        ASSERT_TRUE(receiver.shadow && receiver.complete && !receiver.corrupt);
        ASSERT_EQ(receiver.shadow_key.id, key.id);
        ASSERT_GT(key.id, receiver.serving);
        At(Uniform(0.001, 0.3), [=, this] {
          Receiver& now = receivers_[static_cast<size_t>(index)];
          if (now.incarnation != incarnation) return;
          ASSERT_TRUE(now.shadow && now.shadow_key == key) << "the set was dropped under the flip";
          now.serving = key.id;
          now.shadow = false;
          ++tally_->flips;
          ReceiverEvent done;
          done.kind = Kind::kFlipped;
          done.key = key;
          ToReceiver(index, incarnation, done, answer);
        });
        return;
    }
  }

  void StartSender(uint64_t epoch, int versions) {
    auto sender = std::make_shared<Sender>();
    sender->epoch = epoch;
    sender->last_version = versions;
    senders_.push_back(sender);
    NextVersion(sender);
  }

  void NextVersion(const std::shared_ptr<Sender>& sender) {
    if (static_cast<int>(sender->version) == sender->last_version) return;
    ++sender->version;
    ++tally_->updates;
    sender->begun = now_;
    SenderEvent start;
    start.kind = SenderEvent::Kind::kStart;
    start.key = {{sender->epoch, sender->version}, 1};
    start.num_servers = static_cast<int>(receivers_.size());
    start.budget = kBudget;
    ToSender(sender, start);
  }

  void ToSender(const std::shared_ptr<Sender>& sender, const SenderEvent& event) {
    if (sender->dead) return;
    const bool was_finished = sender->state.finished;
    SenderTransition transition = Step(sender->state, event, now_);
    sender->state = transition.next;
    if (!sender->state.finished) {
      // I8: an unfinished update awaits something with a deadline, and that within budget and grace.
      ASSERT_LE(sender->state.phase_deadline, sender->begun + kBudget + kAbortGrace);
      AtTime(sender->state.phase_deadline, [=, this] { ToSender(sender, SenderEvent()); });
    }
    for (const SenderAction& action : transition.actions) Carry(sender, action);
    if (sender->state.finished && (!was_finished || event.kind == SenderEvent::Kind::kStart)) Finished(sender);
  }

  void Carry(const std::shared_ptr<Sender>& sender, const SenderAction& action) {
    const auto call = [=, this](int server, const ReceiverEvent& request, SenderEvent::Kind reply) {
      Message([=, this] {
        const int incarnation = receivers_[static_cast<size_t>(server)].incarnation;
        ToReceiver(server, incarnation, request, [=, this](const absl::Status& status) {
          SenderEvent answer;
          answer.kind = reply;
          answer.key = action.key;
          answer.server = server;
          answer.status = status;
          answer.digests_match = !receivers_[static_cast<size_t>(server)].corrupt;
          Message([=, this] { ToSender(sender, answer); });
        });
      });
    };
    ReceiverEvent request;
    request.key = action.key;
    request.budget = kBudget;
    switch (action.kind) {
      case SenderAction::Kind::kBegin:
        if (sender->state.attempts > 1) ++tally_->retries;
        request.kind = Kind::kBegin;
        return call(action.server, request, SenderEvent::Kind::kVote);
      case SenderAction::Kind::kTransfer: {
        request.kind = Kind::kReceive;
        for (const int server : action.members) call(server, request, SenderEvent::Kind::kReceived);
        if (Chance(faults_.stuck)) return;
        SenderEvent sent;
        sent.kind = SenderEvent::Kind::kSent;
        sent.key = action.key;
        if (Chance(faults_.fail)) sent.status = absl::AbortedError("connection closed by peer");
        At(Uniform(0.01, 1.0), [=, this] { ToSender(sender, sent); });
        return;
      }
      case SenderAction::Kind::kAbort:
        request.kind = Kind::kAbort;
        return call(action.server, request, SenderEvent::Kind::kAborted);
      case SenderAction::Kind::kCommit:
        request.kind = Kind::kCommit;
        return call(action.server, request, SenderEvent::Kind::kCommitted);
      case SenderAction::Kind::kCloseTransport:
      case SenderAction::Kind::kFinish:
        return;
    }
  }

  void Finished(const std::shared_ptr<Sender>& sender) {
    ASSERT_LE(now_, sender->begun + kBudget + kAbortGrace);
    for (size_t i = 0; i < sender->state.servers.size(); ++i) {
      const SenderServer& server = sender->state.servers[i];
      const bool committed = server.phase == SenderServer::Phase::kCommitted;
      ASSERT_TRUE(committed || server.phase == SenderServer::Phase::kFailed);
      ASSERT_EQ(committed, server.status.ok()) << server.status;
      tally_->committed_servers += committed ? 1 : 0;
      tally_->failed_servers += committed ? 0 : 1;
      tally_->quarantined += server.quarantined ? 1 : 0;
      if (committed && faults_.receiver_deaths == 0) {
        ASSERT_GE(receivers_[i].serving, sender->state.key.id) << "reported as committed and is not";
      }
    }
    At(Uniform(0, 2), [=, this] {
      if (!sender->dead) NextVersion(sender);
    });
  }

  void AtRest() {
    for (const Receiver& receiver : receivers_) {
      ASSERT_FALSE(receiver.state.busy()) << ToString(receiver.state.state);
      ASSERT_FALSE(receiver.shadow) << "memory of an update that is over";
      ASSERT_EQ(receiver.state.committed, receiver.serving);
    }
    for (const auto& sender : senders_) ASSERT_TRUE(sender->dead || sender->state.finished);
  }

  static constexpr absl::Duration kBudget = absl::Seconds(10);
  std::mt19937_64 random_;
  const Faults faults_;
  std::vector<Receiver> receivers_;
  std::vector<std::shared_ptr<Sender>> senders_;
  std::priority_queue<Entry> queue_;
  uint64_t sequence_ = 0;
  absl::Time now_ = kStart;
  Tally* tally_;
};

TEST(UpdateSimulationTest, WithoutFaultsEveryServerCommitsEveryVersionAtTheFirstAttempt) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Tally tally;
    Simulation(seed, Faults(), 3, &tally).Run(4);
    ASSERT_EQ(tally.committed_servers, 12) << "seed " << seed;
    ASSERT_EQ(tally.failed_servers + tally.retries + tally.refused + tally.drops, 0) << "seed " << seed;
  }
}

TEST(UpdateSimulationTest, OneReceiverThatAlwaysFailsDoesNotCostTheOthersTheVersion) {
  // Transfers that fail at random: whoever still answers gets the version by a later attempt in most runs.
  Tally tally;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    Faults faults;
    faults.fail = 0.1;
    Simulation(seed, faults, 3, &tally).Run(2);
    ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
  }
  EXPECT_GT(tally.retries, 100);
  EXPECT_GT(tally.committed_servers, 20 * tally.failed_servers);
}

TEST(UpdateSimulationTest, TenThousandSeedsOfFaultsKeepTheInvariants) {
  Tally tally;
  for (uint64_t seed = 1; seed <= 12000; ++seed) {
    std::mt19937_64 random(seed * 7919);
    const auto pick = [&](double greatest) {
      return random() % 2 == 0 ? 0.0 : std::uniform_real_distribution<double>(0, greatest)(random);
    };
    Faults faults;
    faults.loss = pick(0.3);
    faults.duplicate = pick(0.3);
    faults.late = pick(0.3);
    faults.corrupt = pick(0.3);
    faults.fail = pick(0.3);
    faults.stuck = pick(0.2);
    faults.unprepared = pick(0.1);
    faults.receiver_deaths = static_cast<int>(random() % 3);
    faults.sender_deaths = static_cast<int>(random() % 3);
    faults.split_brain = random() % 2 == 0;
    Simulation(seed, faults, 1 + static_cast<int>(random() % 4), &tally).Run(3);
    ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
  }
  // The faults happened, and the protocol got somewhere in spite of them.
  EXPECT_GT(tally.committed_servers, 10000);
  EXPECT_GT(tally.failed_servers, 1000);
  EXPECT_GT(tally.retries, 1000);
  EXPECT_GT(tally.refused, 1000);
  EXPECT_GT(tally.drops, 1000);
  EXPECT_GT(tally.quarantined, 10);
  EXPECT_GT(tally.deaths, 1000);
  RecordProperty("updates", tally.updates);
  RecordProperty("flips", tally.flips);
}

}  // namespace
}  // namespace lockstep
