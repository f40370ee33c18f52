#include "learner/ledger.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "learner/sqlite.h"

namespace lockstep {
namespace {

// Waits for another connection's transaction (a reader such as the client's status, or a learner about to end).
constexpr int kBusyTimeoutMs = 5000;

constexpr char kSchema[] = R"sql(
CREATE TABLE IF NOT EXISTS epochs(
  epoch INTEGER PRIMARY KEY,
  started_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS steps(
  step INTEGER PRIMARY KEY,
  epoch INTEGER NOT NULL REFERENCES epochs(epoch),
  weight_version INTEGER NOT NULL,
  num_groups INTEGER NOT NULL,
  skipped INTEGER NOT NULL,
  summary TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS groups(
  group_id INTEGER PRIMARY KEY,
  step INTEGER NOT NULL,
  problem_index INTEGER NOT NULL,
  epoch INTEGER NOT NULL REFERENCES epochs(epoch),
  num_samples INTEGER NOT NULL,
  committed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS groups_by_step ON groups(step);
CREATE TABLE IF NOT EXISTS samples(
  group_id INTEGER NOT NULL REFERENCES groups(group_id),
  sample_index INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  finish_reason INTEGER NOT NULL,
  reward REAL NOT NULL,
  dropped TEXT NOT NULL,
  num_tokens INTEGER NOT NULL,
  trajectory BLOB NOT NULL,
  PRIMARY KEY(group_id, sample_index)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS routing(
  group_id INTEGER NOT NULL REFERENCES groups(group_id),
  sample_index INTEGER NOT NULL,
  prompt BLOB,
  response BLOB NOT NULL,
  PRIMARY KEY(group_id, sample_index));
CREATE TABLE IF NOT EXISTS evaluations(
  step INTEGER PRIMARY KEY,
  epoch INTEGER NOT NULL REFERENCES epochs(epoch),
  weight_version INTEGER NOT NULL,
  settings TEXT NOT NULL,
  summary TEXT NOT NULL);
)sql";

struct Invariant {
  const char* sentence;
  const char* violations;  // a query of the number of violations
};

constexpr Invariant kInvariants[] = {
    {"steps are numbered 1, 2, 3, ... without a gap", "SELECT COUNT(*) - COALESCE(MAX(step), 0) FROM steps"},
    {"every committed group belongs to a committed step",
     "SELECT COUNT(*) FROM groups WHERE committed = 1 AND step NOT IN (SELECT step FROM steps)"},
    {"a committed step holds exactly the groups that it recorded",
     "SELECT COUNT(*) FROM steps s WHERE s.num_groups <> "
     "(SELECT COUNT(*) FROM groups g WHERE g.step = s.step AND g.committed = 1)"},
    {"a group holds exactly its samples",
     "SELECT COUNT(*) FROM groups g WHERE g.num_samples <> "
     "(SELECT COUNT(*) FROM samples s WHERE s.group_id = g.group_id)"},
    {"every sample belongs to an accepted group",
     "SELECT COUNT(*) FROM samples WHERE group_id NOT IN (SELECT group_id FROM groups)"},
    {"a sample's arrays have one entry a token",
     "SELECT COUNT(*) FROM samples WHERE LENGTH(trajectory) <> num_tokens * 16"},
    {"routing belongs to a sample",
     "SELECT COUNT(*) FROM routing r WHERE NOT EXISTS "
     "(SELECT 1 FROM samples s WHERE s.group_id = r.group_id AND s.sample_index = r.sample_index)"},
    {"a sample's routing has as many bytes for each token",
     "SELECT COUNT(*) FROM routing r JOIN samples s USING(group_id, sample_index) "
     "WHERE s.num_tokens > 0 AND LENGTH(r.response) % s.num_tokens <> 0"},
    {"epochs of steps never fall",
     "SELECT COUNT(*) FROM steps a JOIN steps b ON b.step = a.step + 1 WHERE b.epoch < a.epoch"},
    {"weight versions of steps never fall",
     "SELECT COUNT(*) FROM steps a JOIN steps b ON b.step = a.step + 1 WHERE b.weight_version < a.weight_version"},
    {"weight versions of evaluations never fall",
     "SELECT COUNT(*) FROM evaluations a JOIN evaluations b ON b.step > a.step AND b.weight_version < "
     "a.weight_version"},
    {"accepted samples are committed, dropped or pending",
     "SELECT (SELECT COUNT(*) FROM samples) - (SELECT COUNT(*) FROM samples WHERE dropped <> '') - "
     "(SELECT COUNT(*) FROM samples s JOIN groups g USING(group_id) WHERE s.dropped = '' AND g.committed IN (0, 1))"},
};

// The arrays one after another; 16 bytes a token.
std::string PackTrajectory(const Sample& sample) {
  const size_t n = sample.tokens.size();
  std::string bytes(n * 16, '\0');
  if (n == 0) return bytes;
  std::memcpy(bytes.data(), sample.tokens.data(), n * 4);
  std::memcpy(bytes.data() + n * 4, sample.log_probs.data(), n * 4);
  std::memcpy(bytes.data() + n * 8, sample.weight_versions.data(), n * 8);
  return bytes;
}

absl::Status UnpackTrajectory(const std::string& bytes, uint64_t num_tokens, Sample* sample) {
  if (bytes.size() % 16 != 0 || bytes.size() / 16 != num_tokens) {
    return absl::DataLossError(
        absl::StrCat("ledger: a trajectory of ", num_tokens, " tokens has ", bytes.size(), " bytes"));
  }
  const size_t n = num_tokens;
  sample->tokens.resize(n);
  sample->log_probs.resize(n);
  sample->weight_versions.resize(n);
  if (n == 0) return absl::OkStatus();
  std::memcpy(sample->tokens.data(), bytes.data(), n * 4);
  std::memcpy(sample->log_probs.data(), bytes.data() + n * 4, n * 4);
  std::memcpy(sample->weight_versions.data(), bytes.data() + n * 8, n * 8);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> QueryInt(sqlite3* database, std::string_view sql) {
  SqliteStatement statement(database, sql);
  if (!statement.Step()) return SqliteError(database, sql);
  return statement.Int(0);
}

absl::Status InsertSample(sqlite3* database, uint64_t group_id, const Sample& sample) {
  if (sample.log_probs.size() != sample.tokens.size() || sample.weight_versions.size() != sample.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat("ledger: sample ", sample.sample_index, " of group ", group_id,
                                                   " has ", sample.tokens.size(), " tokens, ", sample.log_probs.size(),
                                                   " log-probs and ", sample.weight_versions.size(), " versions"));
  }
  SqliteStatement insert(database, "INSERT INTO samples VALUES(?,?,?,?,?,?,?,?,?)");
  insert.Bind(group_id)
      .Bind(uint64_t{sample.sample_index})
      .Bind(uint64_t{sample.attempt})
      .Bind(sample.weight_epoch)
      .Bind(static_cast<uint64_t>(sample.finish_reason))
      .Bind(sample.reward)
      .Bind(sample.dropped_reason)
      .Bind(uint64_t{sample.tokens.size()})
      .BindBlob(PackTrajectory(sample));
  insert.Step();
  return insert.status();
}

// previous: the prompt's routing of the sample that was inserted before.
absl::Status InsertRouting(sqlite3* database, uint64_t group_id, const Sample& sample, const std::string* previous) {
  SqliteStatement insert(database, "INSERT INTO routing VALUES(?,?,?,?)");
  insert.Bind(group_id).Bind(uint64_t{sample.sample_index});
  const std::string* prompt = sample.prompt_routing.get();
  if (previous != nullptr && (prompt == previous || *prompt == *previous)) {
    insert.BindNull();
  } else {
    insert.BindBlob(*prompt);
  }
  insert.BindBlob(sample.routing).Step();
  return insert.status();
}

absl::Status InsertSamples(sqlite3* database, const SampleGroup& group) {
  const std::string* previous = nullptr;
  for (const Sample& sample : group.samples) {
    if (absl::Status status = InsertSample(database, group.group_id, sample); !status.ok()) return status;
    if (sample.prompt_routing == nullptr) continue;
    if (absl::Status status = InsertRouting(database, group.group_id, sample, previous); !status.ok()) return status;
    previous = sample.prompt_routing.get();
  }
  return absl::OkStatus();
}

// Samples are ascending by index, as they were inserted.
absl::Status ReadRouting(sqlite3* database, SampleGroup* group) {
  SqliteStatement rows(database,
                       "SELECT sample_index, prompt IS NULL, prompt, response FROM routing WHERE group_id = ? "
                       "ORDER BY sample_index");
  rows.Bind(group->group_id);
  std::shared_ptr<const std::string> prompt;
  while (rows.Step()) {
    const uint64_t index = rows.Int(0);
    if (rows.Int(1) == 0) prompt = std::make_shared<const std::string>(rows.Bytes(2));
    const auto sample = std::find_if(group->samples.begin(), group->samples.end(),
                                     [index](const Sample& s) { return s.sample_index == index; });
    if (sample == group->samples.end() || prompt == nullptr) {
      return absl::DataLossError(absl::StrCat("ledger: routing of sample ", index, " of group ", group->group_id,
                                              " has no ", prompt == nullptr ? "prompt" : "sample"));
    }
    sample->prompt_routing = prompt;
    sample->routing = rows.Bytes(3);
  }
  return rows.status();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ledger>> Ledger::Open(const std::string& path) {
  std::unique_ptr<Ledger> ledger(new Ledger());
  ledger->path_ = path;
  if (sqlite3_open_v2(path.c_str(), &ledger->database_, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr) !=
      SQLITE_OK) {
    return absl::UnavailableError(absl::StrCat("ledger ", path, ": ", sqlite3_errmsg(ledger->database_)));
  }
  sqlite3_busy_timeout(ledger->database_, kBusyTimeoutMs);
  for (const char* sql : {"PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA foreign_keys=ON", kSchema}) {
    if (absl::Status status = SqliteExecute(ledger->database_, sql); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat(status.message(), " (", path, ")"));
    }
  }
  return ledger;
}

Ledger::~Ledger() { sqlite3_close(database_); }

absl::Status Ledger::CheckEpoch() const {
  if (epoch_ == 0) return absl::FailedPreconditionError("ledger: BeginEpoch comes before any write");
  auto newest = QueryInt(database_, "SELECT COALESCE(MAX(epoch), 0) FROM epochs");
  if (!newest.ok()) return newest.status();
  if (*newest != epoch_) {
    return absl::FailedPreconditionError(absl::StrCat("ledger ", path_, ": this learner has epoch ", epoch_,
                                                      ", and a newer one has started epoch ", *newest,
                                                      "; this one must end"));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Ledger::BeginEpoch() {
  SqliteTransaction transaction(database_);
  if (!transaction.status().ok()) return transaction.status();
  auto newest = QueryInt(database_, "SELECT COALESCE(MAX(epoch), 0) FROM epochs");
  if (!newest.ok()) return newest.status();
  SqliteStatement insert(database_, "INSERT INTO epochs VALUES(?,?)");
  insert.Bind(*newest + 1).Bind(absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone()));
  insert.Step();
  if (!insert.status().ok()) return insert.status();
  if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  epoch_ = *newest + 1;
  return epoch_;
}

absl::StatusOr<uint64_t> Ledger::Resume(uint64_t checkpoint_step) {
  if (absl::Status status = SqliteExecute(database_, "PRAGMA synchronous=FULL"); !status.ok()) return status;
  SqliteTransaction transaction(database_);
  if (!transaction.status().ok()) return transaction.status();
  if (absl::Status status = CheckEpoch(); !status.ok()) return status;
  auto last = LastStep();
  if (!last.ok()) return last.status();
  if (*last < checkpoint_step) {
    return absl::DataLossError(absl::StrCat("ledger ", path_, " ends at step ", *last, ", the checkpoint is of step ",
                                            checkpoint_step, "; they are not of the same run"));
  }
  SqliteStatement groups(database_, "UPDATE groups SET committed = 0 WHERE step > ?");
  groups.Bind(checkpoint_step).Step();
  if (!groups.status().ok()) return groups.status();
  SqliteStatement steps(database_, "DELETE FROM steps WHERE step > ?");
  steps.Bind(checkpoint_step).Step();
  if (!steps.status().ok()) return steps.status();
  if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  return *last - checkpoint_step;
}

absl::StatusOr<bool> Ledger::CommitGroup(const SampleGroup& group) {
  // Durable against a kill now, against a power cut with the step (whose commit also syncs what lies before it).
  if (absl::Status status = SqliteExecute(database_, "PRAGMA synchronous=NORMAL"); !status.ok()) return status;
  SqliteTransaction transaction(database_);
  if (!transaction.status().ok()) return transaction.status();
  if (absl::Status status = CheckEpoch(); !status.ok()) return status;
  SqliteStatement insert(database_,
                         "INSERT OR IGNORE INTO groups(group_id, step, problem_index, epoch, num_samples) "
                         "VALUES(?,?,?,?,?)");
  insert.Bind(group.group_id)
      .Bind(group.step)
      .Bind(group.problem_index)
      .Bind(epoch_)
      .Bind(uint64_t{group.samples.size()})
      .Step();
  if (!insert.status().ok()) return insert.status();
  if (sqlite3_changes(database_) == 0) return false;
  if (absl::Status status = InsertSamples(database_, group); !status.ok()) return status;
  if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  return true;
}

absl::Status Ledger::CommitStep(const StepRecord& record) {
  if (absl::Status status = SqliteExecute(database_, "PRAGMA synchronous=FULL"); !status.ok()) return status;
  SqliteTransaction transaction(database_);
  if (!transaction.status().ok()) return transaction.status();
  if (absl::Status status = CheckEpoch(); !status.ok()) return status;
  auto last = LastStep();
  if (!last.ok()) return last.status();
  if (record.step != *last + 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("ledger: step ", record.step, " cannot follow step ", *last, "; expected ", *last + 1));
  }
  SqliteStatement insert(database_, "INSERT INTO steps VALUES(?,?,?,?,?,?)");
  insert.Bind(record.step)
      .Bind(epoch_)
      .Bind(record.weight_version)
      .Bind(uint64_t{record.group_ids.size()})
      .Bind(uint64_t{record.skipped})
      .Bind(record.summary_json)
      .Step();
  if (!insert.status().ok()) return insert.status();
  for (uint64_t group_id : record.group_ids) {
    SqliteStatement update(database_,
                           "UPDATE groups SET committed = 1 WHERE group_id = ? AND step = ? AND committed = 0");
    update.Bind(group_id).Bind(record.step).Step();
    if (!update.status().ok()) return update.status();
    if (sqlite3_changes(database_) != 1) {
      return absl::FailedPreconditionError(absl::StrCat("ledger: group ", group_id, " is not pending for step ",
                                                        record.step,
                                                        "; it was not accepted for it, or counted already"));
    }
  }
  return transaction.Commit();
}

absl::Status Ledger::CommitEvaluation(const EvaluationRecord& record) {
  if (absl::Status status = SqliteExecute(database_, "PRAGMA synchronous=FULL"); !status.ok()) return status;
  SqliteTransaction transaction(database_);
  if (!transaction.status().ok()) return transaction.status();
  if (absl::Status status = CheckEpoch(); !status.ok()) return status;
  SqliteStatement insert(database_, "INSERT OR REPLACE INTO evaluations VALUES(?,?,?,?,?)");
  insert.Bind(record.step)
      .Bind(epoch_)
      .Bind(record.weight_version)
      .Bind(record.settings)
      .Bind(record.summary_json)
      .Step();
  if (!insert.status().ok()) return insert.status();
  return transaction.Commit();
}

absl::StatusOr<std::optional<EvaluationRecord>> Ledger::FindEvaluation(uint64_t step) const {
  SqliteStatement find(database_, "SELECT weight_version, settings, summary FROM evaluations WHERE step = ?");
  if (!find.Bind(step).Step()) {
    if (!find.status().ok()) return find.status();
    return std::optional<EvaluationRecord>();
  }
  EvaluationRecord record;
  record.step = step;
  record.weight_version = find.Int(0);
  record.settings = find.Bytes(1);
  record.summary_json = find.Bytes(2);
  return std::optional<EvaluationRecord>(std::move(record));
}

absl::StatusOr<uint64_t> Ledger::LastStep() const {
  return QueryInt(database_, "SELECT COALESCE(MAX(step), 0) FROM steps");
}

absl::StatusOr<std::optional<SampleGroup>> Ledger::FindGroup(uint64_t group_id) const {
  SqliteStatement find(database_, "SELECT step, problem_index FROM groups WHERE group_id = ?");
  if (!find.Bind(group_id).Step()) {
    if (!find.status().ok()) return find.status();
    return std::optional<SampleGroup>();
  }
  SampleGroup group;
  group.group_id = group_id;
  group.step = find.Int(0);
  group.problem_index = find.Int(1);
  SqliteStatement rows(database_,
                       "SELECT sample_index, attempt, epoch, finish_reason, reward, dropped, num_tokens, trajectory "
                       "FROM samples WHERE group_id = ? ORDER BY sample_index");
  rows.Bind(group_id);
  while (rows.Step()) {
    Sample sample;
    sample.sample_index = static_cast<uint32_t>(rows.Int(0));
    sample.attempt = static_cast<uint32_t>(rows.Int(1));
    sample.weight_epoch = rows.Int(2);
    sample.finish_reason = static_cast<v1::FinishReason>(rows.Int(3));
    sample.reward = rows.Real(4);
    sample.dropped_reason = rows.Bytes(5);
    if (absl::Status status = UnpackTrajectory(rows.Bytes(7), rows.Int(6), &sample); !status.ok()) return status;
    group.samples.push_back(std::move(sample));
  }
  if (!rows.status().ok()) return rows.status();
  if (absl::Status status = ReadRouting(database_, &group); !status.ok()) return status;
  return std::optional<SampleGroup>(std::move(group));
}

absl::StatusOr<LedgerCounts> Ledger::Counts() const {
  LedgerCounts counts;
  const std::pair<uint64_t*, const char*> queries[] = {
      {&counts.accepted, "SELECT COUNT(*) FROM samples"},
      {&counts.dropped, "SELECT COUNT(*) FROM samples WHERE dropped <> ''"},
      {&counts.committed,
       "SELECT COUNT(*) FROM samples s JOIN groups g USING(group_id) WHERE s.dropped = '' AND g.committed = 1"},
      {&counts.pending,
       "SELECT COUNT(*) FROM samples s JOIN groups g USING(group_id) WHERE s.dropped = '' AND g.committed = 0"},
      {&counts.steps, "SELECT COUNT(*) FROM steps"},
      {&counts.epochs, "SELECT COUNT(*) FROM epochs"},
  };
  for (const auto& [target, sql] : queries) {
    auto value = QueryInt(database_, sql);
    if (!value.ok()) return value.status();
    *target = *value;
  }
  return counts;
}

absl::Status Ledger::Audit() const {
  for (const Invariant& invariant : kInvariants) {
    auto violations = QueryInt(database_, invariant.violations);
    if (!violations.ok()) return violations.status();
    if (*violations != 0) {
      return absl::DataLossError(absl::StrCat("ledger ", path_, ": broken invariant '", invariant.sentence, "' (",
                                              static_cast<int64_t>(*violations), " violations)"));
    }
  }
  SqliteStatement check(database_, "PRAGMA quick_check");
  if (!check.Step()) return SqliteError(database_, "quick_check");
  if (check.Bytes(0) != "ok") return absl::DataLossError(absl::StrCat("ledger ", path_, ": ", check.Bytes(0)));
  return absl::OkStatus();
}

}  // namespace lockstep
