// Weight updates between real processes that are killed and stopped (F14, F15, F16, F19, F21 of the fault matrix).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <random>

#include "absl/time/clock.h"
#include "weight_sync/bucket_plan.h"
#include "weight_sync/sync_test_support.h"

extern char** environ;

namespace lockstep {
namespace {

constexpr char kNode[] = "weight_sync/test_node";

// A test_node as a child. Its stderr goes into the same pipe as its stdout, so that a test can wait for log lines too.
class Node {
 public:
  Node(const std::vector<std::string>& arguments, const std::string& failpoints = "") {
    int in[2], out[2];
    LOCKSTEP_CHECK(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0, "pipes");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, out[1], 2);
    std::vector<std::string> words = {kNode};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::vector<char*> environment;
    for (char** it = environ; *it != nullptr; ++it) environment.push_back(*it);
    std::string variable = "LOCKSTEP_FAILPOINTS=" + failpoints;
    environment.push_back(variable.data());
    std::string transport = "LOCKSTEP_TEST_TRANSPORT=" + TestTransport();
    environment.push_back(transport.data());
    environment.push_back(nullptr);
    LOCKSTEP_CHECK(posix_spawn(&pid_, kNode, &actions, nullptr, argv.data(), environment.data()) == 0, "spawn");
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    stdin_ = in[1];
    stdout_ = out[0];
  }
  ~Node() {
    close(stdin_);
    if (!reaped_) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(stdout_);
  }
  Node(const Node&) = delete;

  void Signal(int signal) { kill(pid_, signal); }
  // The signal that ended it; 0 when it did not end by a signal in time.
  int EndedBy(absl::Duration timeout = absl::Seconds(20)) {
    for (const absl::Time deadline = absl::Now() + timeout; absl::Now() < deadline;) {
      int status = 0;
      if (waitpid(pid_, &status, WNOHANG) == pid_) {
        reaped_ = true;
        return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    return 0;
  }
  bool Stopped(absl::Duration timeout = absl::Seconds(20)) {
    for (const absl::Time deadline = absl::Now() + timeout; absl::Now() < deadline;) {
      int status = 0;
      if (waitpid(pid_, &status, WNOHANG | WUNTRACED) == pid_ && WIFSTOPPED(status)) return true;
      absl::SleepFor(absl::Milliseconds(5));
    }
    return false;
  }
  // The rest of the first line not yet read that contains `text`; "" when none came in time or the node ended.
  std::string WaitFor(const std::string& text, absl::Duration timeout = absl::Seconds(20)) {
    const absl::Time deadline = absl::Now() + timeout;
    while (true) {
      for (size_t end; (end = unread_.find('\n')) != std::string::npos;) {
        const std::string line = unread_.substr(0, end);
        unread_.erase(0, end + 1);
        lines_.push_back(line);
        const size_t at = line.find(text);
        if (at != std::string::npos) return line.substr(at + text.size());
      }
      pollfd waiting{stdout_, POLLIN, 0};
      const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
      if (left <= 0 || poll(&waiting, 1, static_cast<int>(left)) <= 0) return "";
      char bytes[4096];
      const ssize_t got = read(stdout_, bytes, sizeof(bytes));
      if (got <= 0) return "";
      unread_.append(bytes, static_cast<size_t>(got));
    }
  }
  // Whether it has flipped to anything so far.
  bool Flipped() {
    WaitFor("no line has this text", absl::Milliseconds(50));
    for (const std::string& line : lines_) {
      if (line.compare(0, 5, "flip ") == 0) return true;
    }
    return false;
  }

 private:
  pid_t pid_ = 0;
  int stdin_ = -1;
  int stdout_ = -1;
  bool reaped_ = false;
  std::string unread_;
  std::vector<std::string> lines_;
};

class ProcessTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { TestTransport() = GetParam(); }
  static std::string Flip(uint64_t epoch, uint64_t version, uint64_t seed) {
    const ModelConfig config = SmallModel();
    return absl::StrCat(epoch, " ", version, " ",
                        DigestHex(ExpectedDigest(config, DType::kF16, RandomArena(config, seed))));
  }
  // Of an update of the small model by a LearnerEnd.
  static int NumBuckets() {
    return static_cast<int>(MakeBucketPlan(ParamLayout(SmallModel()), DType::kF16, 64 << 10)->buckets.size());
  }
};

TEST_P(ProcessTest, AReceiverKilledAtAnyBucketCostsTheOthersNothing) {
  const std::vector<float> arena = RandomArena(SmallModel(), 5);
  for (int bucket = 1; bucket <= NumBuckets(); ++bucket) {
    Node victim({"receiver"}, absl::StrCat("receiver.die:", bucket)), a({"receiver"}), b({"receiver"});
    const std::string victim_address = victim.WaitFor("address ");
    const std::vector<std::string> addresses = {a.WaitFor("address "), victim_address, b.WaitFor("address ")};
    LearnerEnd learner(SmallModel());
    const absl::Time begun = absl::Now();
    const auto report = learner->Publish(1, 1, arena.data(), addresses);
    ASSERT_TRUE(report.ok()) << report.status();
    // The failpoint fired: the victim is dead by its own hand.
    EXPECT_EQ(victim.EndedBy(), SIGKILL) << "bucket " << bucket;
    EXPECT_LT(absl::Now() - begun, absl::Seconds(10)) << "bucket " << bucket;
    EXPECT_TRUE(report->servers[0].status.ok()) << report->servers[0].status;
    EXPECT_EQ(report->servers[1].status.code(), absl::StatusCode::kUnavailable) << report->servers[1].status;
    EXPECT_TRUE(report->servers[2].status.ok()) << report->servers[2].status;
    EXPECT_EQ(a.WaitFor("flip "), Flip(1, 1, 5));
    EXPECT_EQ(b.WaitFor("flip "), Flip(1, 1, 5));
  }
}

TEST_P(ProcessTest, AReceiverThatDiesOrStopsBeforeItJoinsCostsTheOthersNothing) {
  const std::vector<float> arena = RandomArena(SmallModel(), 5);
  for (const bool dies : {true, false}) {
    Node victim({"receiver"}, dies ? "receiver.die_before_join:1" : "receiver.stop_before_join:1"), other({"receiver"});
    const std::string victim_address = victim.WaitFor("address ");
    const std::vector<std::string> addresses = {victim_address, other.WaitFor("address ")};
    LearnerEnd learner(SmallModel());
    const absl::Time begun = absl::Now();
    const auto report = learner->Publish(1, 1, arena.data(), addresses);
    EXPECT_LT(absl::Now() - begun, absl::Seconds(dies ? 8 : 18));
    EXPECT_TRUE(dies ? victim.EndedBy() == SIGKILL : victim.Stopped());
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_FALSE(report->servers[0].status.ok());
    EXPECT_TRUE(report->servers[1].status.ok()) << report->servers[1].status;
    EXPECT_EQ(other.WaitFor("flip "), Flip(1, 1, 5));
  }
}

TEST_P(ProcessTest, AStoppedReceiverIsLeftBehindAndCatchesUpWhenItWakes) {
  Node stopped({"receiver"}, "receiver.stop:3"), healthy({"receiver"});
  const std::string address = stopped.WaitFor("address ");
  const std::vector<std::string> addresses = {address, healthy.WaitFor("address ")};
  LearnerEnd learner(SmallModel());
  const std::vector<float> arena = RandomArena(SmallModel(), 5);
  const absl::Time begun = absl::Now();
  const auto report = learner->Publish(1, 1, arena.data(), addresses);
  EXPECT_LT(absl::Now() - begun, absl::Seconds(15));
  ASSERT_TRUE(stopped.Stopped());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->servers[0].status.code(), absl::StatusCode::kDeadlineExceeded) << report->servers[0].status;
  EXPECT_TRUE(report->servers[1].status.ok()) << report->servers[1].status;
  EXPECT_EQ(healthy.WaitFor("flip "), Flip(1, 1, 5));
  stopped.Signal(SIGCONT);
  // What it still holds of the old attempt ends by itself; nothing of it is served.
  EXPECT_NE(stopped.WaitFor("aborted: "), "");
  EXPECT_FALSE(stopped.Flipped());
  const absl::Status caught_up = learner->CatchUp(address);
  ASSERT_TRUE(caught_up.ok()) << caught_up;
  EXPECT_EQ(stopped.WaitFor("flip "), Flip(1, 1, 5));
}

TEST_P(ProcessTest, ASenderKilledAtAnyBucketLeavesTheOldVersionAndANewOneTakesOver) {
  for (const int bucket : {1, 2, 5, NumBuckets()}) {
    Node a({"receiver"}), b({"receiver"});
    const std::vector<std::string> addresses = {a.WaitFor("address "), b.WaitFor("address ")};
    Node sender({"sender", "1", "3", "5", addresses[0], addresses[1]}, absl::StrCat("sender.die:", bucket));
    EXPECT_EQ(sender.EndedBy(), SIGKILL) << "bucket " << bucket;
    const absl::Time died = absl::Now();
    // The lost control call ends the update, long before any deadline of 20 s.
    EXPECT_NE(a.WaitFor("aborted: ", absl::Seconds(5)), "");
    EXPECT_NE(b.WaitFor("aborted: ", absl::Seconds(5)), "");
    EXPECT_LT(absl::Now() - died, absl::Seconds(4));
    EXPECT_FALSE(a.Flipped() || b.Flipped());
    LearnerEnd restarted(SmallModel());
    const auto report = restarted->Publish(2, 3, RandomArena(SmallModel(), 6).data(), addresses);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(a.WaitFor("flip "), Flip(2, 3, 6));
    EXPECT_EQ(b.WaitFor("flip "), Flip(2, 3, 6));
  }
}

TEST_P(ProcessTest, ASenderStoppedInTheMiddleIsReplacedAndRefusedWhenItWakes) {
  Node a({"receiver"});
  const std::string address = a.WaitFor("address ");
  Node sender({"sender", "1", "3", "5", address}, "sender.stop:3");
  ASSERT_TRUE(sender.Stopped());
  LearnerEnd restarted(SmallModel());
  // The receiver is in the middle of the old update; the new one replaces it without waiting for its deadline.
  const auto report = restarted->Publish(2, 3, RandomArena(SmallModel(), 6).data(), {address});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(a.WaitFor("flip "), Flip(2, 3, 6));
  sender.Signal(SIGCONT);
  const std::string failed = sender.WaitFor("failed: ");
  EXPECT_NE(failed.find("FAILED_PRECONDITION"), std::string::npos) << failed;
  EXPECT_NE(failed.find("epoch 2, version 3"), std::string::npos) << failed;
  EXPECT_EQ(restarted->CatchUp(address), absl::OkStatus());
}

TEST_P(ProcessTest, SendersKilledAtRandomMomentsNeverLeaveAPartOfASet) {
  std::mt19937 random(20261124);
  Node receiver({"receiver"});
  const std::string address = receiver.WaitFor("address ");
  int killed = 0;
  for (uint64_t epoch = 1; epoch <= 20; ++epoch) {
    Node sender({"sender", absl::StrCat(epoch), "1", absl::StrCat(epoch), address});
    absl::SleepFor(absl::Milliseconds(std::uniform_int_distribution<int>(10, 150)(random)));
    sender.Signal(SIGKILL);
    killed += sender.EndedBy() == SIGKILL ? 1 : 0;
  }
  EXPECT_EQ(killed, 20);
  LearnerEnd restarted(SmallModel());
  const auto report = restarted->Publish(21, 1, RandomArena(SmallModel(), 21).data(), {address});
  ASSERT_TRUE(report.ok()) << report.status();
  // Every flip that happened was to a whole set of the epoch that it names, in rising order.
  uint64_t last = 0;
  while (last < 21) {
    const std::string flip = receiver.WaitFor("flip ");
    ASSERT_NE(flip, "");
    const uint64_t epoch = std::strtoull(flip.c_str(), nullptr, 10);
    ASSERT_GT(epoch, last);
    EXPECT_EQ(flip, Flip(epoch, 1, epoch));
    last = epoch;
  }
}

INSTANTIATE_TEST_SUITE_P(Transport, ProcessTest, ::testing::Values("gloo", "nccl", "ipc", "nccl_device", "ipc_device"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lockstep
