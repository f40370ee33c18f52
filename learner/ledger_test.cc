#include "learner/ledger.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "learner/sqlite.h"

namespace lockstep {
namespace {

constexpr uint64_t kGroupsPerStep = 2;

class LedgerTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = std::filesystem::path(testing::TempDir()) /
           (std::string("ledger_") + testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    path_ = (dir_ / "ledger.db").string();
  }
  std::unique_ptr<Ledger> Open() {
    auto ledger = Ledger::Open(path_);
    EXPECT_TRUE(ledger.ok()) << ledger.status();
    return *std::move(ledger);
  }

  std::filesystem::path dir_;
  std::string path_;
};

SampleGroup MakeGroup(uint64_t group_id, uint64_t step) {
  SampleGroup group;
  group.group_id = group_id;
  group.problem_index = 100 + group_id;
  group.step = step;
  for (uint32_t i = 0; i < 3; ++i) {
    Sample sample;
    sample.sample_index = i;
    sample.attempt = 1;
    sample.tokens = {static_cast<int32_t>(group_id), 5, -1};
    sample.log_probs = {-0.5f, -1.25f * i, -0x1p-30f};
    sample.weight_versions = {step, step, step + (uint64_t{1} << 40)};
    sample.weight_epoch = 1;
    sample.finish_reason = v1::FINISH_REASON_STOP;
    sample.reward = i == 0 ? 1 : 0;
    if (i == 2) sample.dropped_reason = "nonfinite";
    group.samples.push_back(std::move(sample));
  }
  return group;
}

StepRecord MakeStep(uint64_t step) {
  StepRecord record;
  record.step = step;
  record.weight_version = step;
  record.summary_json = "{}";
  for (uint64_t i = 0; i < kGroupsPerStep; ++i) record.group_ids.push_back(step * kGroupsPerStep + i);
  return record;
}

absl::Status CommitWholeStep(Ledger& ledger, uint64_t step) {
  const StepRecord record = MakeStep(step);
  for (uint64_t group_id : record.group_ids) {
    auto committed = ledger.CommitGroup(MakeGroup(group_id, step));
    if (!committed.ok()) return committed.status();
  }
  return ledger.CommitStep(record);
}

TEST_F(LedgerTest, EvaluationsAreKeptOverAResumeAndReplacedByLaterOnes) {
  {
    auto ledger = Open();
    ASSERT_TRUE(ledger->BeginEpoch().ok());
    EXPECT_EQ(ledger->FindEvaluation(0)->has_value(), false);
    ASSERT_TRUE(ledger->CommitEvaluation({0, 0, "a", "{\"n\": 4}"}).ok());
    ASSERT_TRUE(CommitWholeStep(*ledger, 1).ok());
    ASSERT_TRUE(ledger->CommitEvaluation({1, 1, "a", "{}"}).ok());
  }
  auto ledger = Open();
  EXPECT_EQ(ledger->CommitEvaluation({2, 1, "a", "{}"}).code(), absl::StatusCode::kFailedPrecondition)
      << "no write before an epoch";
  ASSERT_TRUE(ledger->BeginEpoch().ok());
  EXPECT_EQ(*ledger->Resume(0), 1u);
  const auto kept = ledger->FindEvaluation(1);
  ASSERT_TRUE(kept.ok() && kept->has_value());
  EXPECT_EQ((*kept)->weight_version, 1u);
  EXPECT_EQ((*kept)->settings, "a");
  ASSERT_TRUE(ledger->CommitEvaluation({1, 1, "b", "{\"n\": 2}"}).ok());
  EXPECT_EQ((*ledger->FindEvaluation(1))->summary_json, "{\"n\": 2}");
  EXPECT_EQ((*ledger->FindEvaluation(0))->summary_json, "{\"n\": 4}");
  EXPECT_TRUE(ledger->Audit().ok()) << ledger->Audit();
}

TEST_F(LedgerTest, EpochsGrowWithEveryStart) {
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) EXPECT_EQ(*Open()->BeginEpoch(), epoch);
}

TEST_F(LedgerTest, AGroupComesBackToTheBit) {
  auto ledger = Open();
  ASSERT_TRUE(ledger->BeginEpoch().ok());
  const SampleGroup group = MakeGroup(7, 1);
  ASSERT_TRUE(*ledger->CommitGroup(group));
  const auto found = ledger->FindGroup(7);
  ASSERT_TRUE(found.ok() && found->has_value());
  EXPECT_EQ((*found)->problem_index, group.problem_index);
  ASSERT_EQ((*found)->samples.size(), group.samples.size());
  for (size_t i = 0; i < group.samples.size(); ++i) {
    const Sample& a = (*found)->samples[i];
    const Sample& b = group.samples[i];
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.log_probs, b.log_probs);
    EXPECT_EQ(a.weight_versions, b.weight_versions);
    EXPECT_EQ(a.reward, b.reward);
    EXPECT_EQ(a.dropped_reason, b.dropped_reason);
    EXPECT_EQ(a.finish_reason, b.finish_reason);
  }
  EXPECT_FALSE((*ledger->FindGroup(8)).has_value());
}

SampleGroup MakeRoutedGroup(uint64_t group_id, uint64_t step) {
  SampleGroup group = MakeGroup(group_id, step);
  const auto prompt = std::make_shared<const std::string>("\1\0\2", 3);
  for (Sample& sample : group.samples) {
    sample.prompt_routing = prompt;
    sample.routing = std::string("\0\3\1", 3) + std::string(3, static_cast<char>(sample.sample_index));
  }
  // Drawn anew after the prompt was computed again.
  group.samples[2].prompt_routing = std::make_shared<const std::string>("\2\2\2", 3);
  return group;
}

TEST_F(LedgerTest, RoutingComesBackToTheBitAndThePromptsIsKeptOnce) {
  const SampleGroup group = MakeRoutedGroup(7, 1);
  {
    auto ledger = Open();
    ASSERT_TRUE(ledger->BeginEpoch().ok());
    ASSERT_TRUE(*ledger->CommitGroup(group));
    ASSERT_TRUE(*ledger->CommitGroup(MakeGroup(8, 1)));
    EXPECT_TRUE(ledger->Audit().ok()) << ledger->Audit();
  }
  auto ledger = Open();
  const auto found = ledger->FindGroup(7);
  ASSERT_TRUE(found.ok() && found->has_value()) << found.status();
  for (size_t i = 0; i < group.samples.size(); ++i) {
    const Sample& sample = (*found)->samples[i];
    ASSERT_NE(sample.prompt_routing, nullptr);
    EXPECT_EQ(*sample.prompt_routing, *group.samples[i].prompt_routing);
    EXPECT_EQ(sample.routing, group.samples[i].routing);
  }
  EXPECT_EQ((*found)->samples[0].prompt_routing, (*found)->samples[1].prompt_routing);
  const auto plain = ledger->FindGroup(8);
  for (const Sample& sample : (*plain)->samples) EXPECT_EQ(sample.prompt_routing, nullptr);
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &database), SQLITE_OK);
  {
    SqliteStatement prompts(database, "SELECT COUNT(prompt), COUNT(*) FROM routing");
    ASSERT_TRUE(prompts.Step());
    EXPECT_EQ(prompts.Int(0), 2u);
    EXPECT_EQ(prompts.Int(1), 3u);
  }
  sqlite3_close(database);
}

TEST_F(LedgerTest, ALedgerOfBeforeRoutingOpensAndTakesIt) {
  {
    auto ledger = Open();
    ASSERT_TRUE(ledger->BeginEpoch().ok());
    ASSERT_TRUE(CommitWholeStep(*ledger, 1).ok());
    ASSERT_TRUE(*ledger->CommitGroup(MakeGroup(4, 2)));
  }
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &database), SQLITE_OK);
  ASSERT_TRUE(SqliteExecute(database, "DROP TABLE routing").ok());
  sqlite3_close(database);
  auto ledger = Open();
  ASSERT_TRUE(ledger->BeginEpoch().ok());
  const auto old_group = ledger->FindGroup(4);
  ASSERT_TRUE(old_group.ok() && old_group->has_value()) << old_group.status();
  EXPECT_EQ((*old_group)->samples[0].prompt_routing, nullptr);
  ASSERT_TRUE(*ledger->CommitGroup(MakeRoutedGroup(5, 2)));
  EXPECT_NE((*ledger->FindGroup(5))->samples[0].prompt_routing, nullptr);
  EXPECT_TRUE(ledger->CommitStep(MakeStep(2)).ok());
  EXPECT_TRUE(ledger->Audit().ok()) << ledger->Audit();
}

TEST_F(LedgerTest, ADuplicateGroupIsNotCounted) {
  auto ledger = Open();
  ASSERT_TRUE(ledger->BeginEpoch().ok());
  EXPECT_TRUE(*ledger->CommitGroup(MakeGroup(2, 1)));
  EXPECT_FALSE(*ledger->CommitGroup(MakeGroup(2, 1)));
  EXPECT_EQ(ledger->Counts()->accepted, 3);
}

TEST_F(LedgerTest, AcceptedIsCommittedPlusDroppedPlusPending) {
  auto ledger = Open();
  ASSERT_TRUE(ledger->BeginEpoch().ok());
  ASSERT_TRUE(CommitWholeStep(*ledger, 1).ok());
  ASSERT_TRUE(ledger->CommitGroup(MakeGroup(4, 2)).ok());
  const LedgerCounts counts = *ledger->Counts();
  EXPECT_EQ(counts.accepted, 9);
  EXPECT_EQ(counts.committed, 4);
  EXPECT_EQ(counts.dropped, 3);
  EXPECT_EQ(counts.pending, 2);
  EXPECT_TRUE(ledger->Audit().ok()) << ledger->Audit();
}

TEST_F(LedgerTest, AStepCannotSkipOrRepeatOrTakeAForeignGroup) {
  auto ledger = Open();
  ASSERT_TRUE(ledger->BeginEpoch().ok());
  ASSERT_TRUE(CommitWholeStep(*ledger, 1).ok());
  EXPECT_EQ(ledger->CommitStep(MakeStep(1)).message(), "ledger: step 1 cannot follow step 1; expected 2");
  EXPECT_EQ(ledger->CommitStep(MakeStep(3)).message(), "ledger: step 3 cannot follow step 1; expected 2");
  StepRecord foreign = MakeStep(2);
  foreign.group_ids = {2};  // counted in step 1
  EXPECT_EQ(ledger->CommitStep(foreign).message(),
            "ledger: group 2 is not pending for step 2; it was not accepted for it, or counted already");
  EXPECT_EQ(*ledger->LastStep(), 1) << "the refused step left nothing behind";
}

TEST_F(LedgerTest, ResumeRollsStepsBackAndKeepsTheirGroups) {
  auto ledger = Open();
  ASSERT_TRUE(ledger->BeginEpoch().ok());
  for (uint64_t step = 1; step <= 4; ++step) ASSERT_TRUE(CommitWholeStep(*ledger, step).ok());
  ledger = Open();
  EXPECT_EQ(*ledger->BeginEpoch(), 2);
  EXPECT_EQ(*ledger->Resume(2), 2);
  EXPECT_EQ(*ledger->LastStep(), 2);
  EXPECT_TRUE((*ledger->FindGroup(6)).has_value());
  EXPECT_TRUE(ledger->Audit().ok()) << ledger->Audit();
  EXPECT_TRUE(ledger->CommitStep(MakeStep(3)).ok());
  EXPECT_TRUE(ledger->Audit().ok()) << ledger->Audit();
}

TEST_F(LedgerTest, ACheckpointNewerThanTheLedgerIsRefused) {
  auto ledger = Open();
  ASSERT_TRUE(ledger->BeginEpoch().ok());
  ASSERT_TRUE(CommitWholeStep(*ledger, 1).ok());
  EXPECT_EQ(ledger->Resume(5).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(LedgerTest, AnOlderLearnerIsFencedOutByANewerEpoch) {
  auto older = Open();
  ASSERT_TRUE(older->BeginEpoch().ok());
  auto newer = Open();
  ASSERT_TRUE(newer->BeginEpoch().ok());
  const absl::Status status = older->CommitGroup(MakeGroup(2, 1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("a newer one has started epoch 2"), std::string::npos) << status;
  EXPECT_TRUE(*newer->CommitGroup(MakeGroup(2, 1)));
}

TEST_F(LedgerTest, TheAuditNamesTheBrokenInvariant) {
  auto ledger = Open();
  ASSERT_TRUE(ledger->BeginEpoch().ok());
  ASSERT_TRUE(CommitWholeStep(*ledger, 1).ok());
  sqlite3* database;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &database), SQLITE_OK);
  ASSERT_TRUE(SqliteExecute(database, "DELETE FROM samples WHERE group_id = 2 AND sample_index = 1").ok());
  sqlite3_close(database);
  const absl::Status status = ledger->Audit();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(status.message().find("a group holds exactly its samples"), std::string::npos) << status;
}

TEST_F(LedgerTest, AFileThatIsNoDatabaseIsRefused) {
  std::ofstream(path_) << std::string(4096, 'x');
  const auto ledger = Ledger::Open(path_);
  EXPECT_EQ(ledger.status().code(), absl::StatusCode::kDataLoss) << ledger.status();
}

// A child commits steps and reports each over a pipe after the call returned; it is killed with SIGKILL at a point that
// moves from round to round. Whatever was reported must be there, and the whole must satisfy every invariant.
TEST_F(LedgerTest, SurvivesSigkillBetweenAnyTwoWrites) {
  uint64_t next_step = 1;
  for (int round = 0; round < 20; ++round) {
    int pipe_fds[2];
    ASSERT_EQ(pipe(pipe_fds), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto ledger = Ledger::Open(path_);
      if (!ledger.ok() || !(*ledger)->BeginEpoch().ok()) _exit(1);
      for (uint64_t step = next_step;; ++step) {
        if (!CommitWholeStep(**ledger, step).ok()) _exit(2);
        if (write(pipe_fds[1], &step, sizeof step) != sizeof step) _exit(3);
      }
    }
    close(pipe_fds[1]);
    uint64_t reported = 0;
    for (int i = 0; i <= round % 4; ++i) ASSERT_EQ(read(pipe_fds[0], &reported, sizeof reported), 8);
    usleep(130 * round);  // varies the instant within the next transaction
    kill(child, SIGKILL);
    uint64_t later;
    while (read(pipe_fds[0], &later, sizeof later) == 8) reported = later;
    close(pipe_fds[0]);
    int wait_status;
    ASSERT_EQ(waitpid(child, &wait_status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGKILL) << "the kill must be what ended it";

    auto ledger = Open();
    const uint64_t last = *ledger->LastStep();
    EXPECT_GE(last, reported) << "an acknowledged step is lost";
    EXPECT_LE(last, reported + 1);
    EXPECT_TRUE(ledger->Audit().ok()) << ledger->Audit();
    next_step = last + 1;
  }
}

// The WAL's tail is cut or overwritten, as a power cut in the middle of a write leaves it.
TEST_F(LedgerTest, ATornWriteAheadLogLosesOnlyWholeTransactionsAtItsEnd) {
  {
    auto ledger = Open();
    ASSERT_TRUE(ledger->BeginEpoch().ok());
  }
  const pid_t child = fork();
  if (child == 0) {  // ends without closing, so that the WAL stays
    auto ledger = Ledger::Open(path_);
    if (!ledger.ok() || !(*ledger)->BeginEpoch().ok()) _exit(1);
    for (uint64_t step = 1; step <= 6; ++step) {
      if (!CommitWholeStep(**ledger, step).ok()) _exit(2);
    }
    _exit(0);
  }
  int wait_status;
  ASSERT_EQ(waitpid(child, &wait_status, 0), child);
  ASSERT_EQ(wait_status, 0);
  const std::string wal = path_ + "-wal";
  const uint64_t bytes = std::filesystem::file_size(wal);
  ASSERT_GT(bytes, 8192);
  std::filesystem::create_directory(dir_ / "copy");
  uint64_t previous = 7;
  for (uint64_t cut = 0; cut < bytes; cut += bytes / 16 + 13) {
    const std::string copy = (dir_ / "copy" / "ledger.db").string();
    for (const char* suffix : {"-wal", "-shm"}) std::filesystem::remove(copy + suffix);
    using std::filesystem::copy_options;
    std::filesystem::copy_file(path_, copy, copy_options::overwrite_existing);
    std::filesystem::copy_file(wal, copy + "-wal", copy_options::overwrite_existing);
    std::filesystem::resize_file(copy + "-wal", bytes - cut);
    auto ledger = Ledger::Open(copy);
    ASSERT_TRUE(ledger.ok()) << ledger.status();
    EXPECT_TRUE((*ledger)->Audit().ok()) << (*ledger)->Audit() << " with " << cut << " bytes cut";
    const uint64_t last = *(*ledger)->LastStep();
    EXPECT_LE(last, previous);
    previous = last;
  }
  EXPECT_LT(previous, 2u) << "the cuts reached the first transactions";
}

}  // namespace
}  // namespace lockstep
