// The run's ledger: the only durable truth about what was sampled, counted and trained. One SQLite file in WAL mode
// with synchronous=FULL; every call is one transaction, so a kill at any instant leaves all of a call or nothing of it.
//
// Tables
//   epochs(epoch, started_at)                      one row a learner start; the newest epoch fences all older learners
//   steps(step, epoch, weight_version, num_groups, skipped, summary)     committed training steps, 1, 2, 3, ...
//   groups(group_id, step, problem_index, epoch, num_samples, committed) accepted groups; `step` trains on it
//   samples(group_id, sample_index, attempt, epoch, finish_reason, reward, dropped, num_tokens, trajectory)
//       trajectory: tokens int32, log_probs float32, weight_versions uint64, little-endian, end to end
//   routing(group_id, sample_index, prompt, response)
//       a row a sample whose rollout sent its experts (learner/trajectory.h), in the bytes of engine/model/routing.h.
//       `prompt` is NULL where it is that of the sample before, as the samples of one prefill have it. A ledger that
//       was made without the table gets it; samples without a row have no routing, and the learner's routers choose for
//       them.
//   evaluations(step, epoch, weight_version, settings, summary)          held-out evaluations, one a step at most;
//       `settings` is the digest of what its figures depend on. A resume keeps them: the steps that are done again
//       give the same weights, so an evaluation with equal settings is not made twice.
// A sample's disposition: dropped <> '' dropped with that reason; else committed (its group's step is in `steps`), else
// pending. accepted = committed + dropped + pending, always.
//
// Resume: steps after the checkpoint are rolled back in one transaction, their groups stay accepted; replaying such a
// step takes its groups from here instead of sampling again, so the step is the same to the bit.
#ifndef LOCKSTEP_LEARNER_LEDGER_H_
#define LOCKSTEP_LEARNER_LEDGER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "learner/trajectory.h"

struct sqlite3;

namespace lockstep {

struct StepRecord {
  uint64_t step = 0;
  uint64_t weight_version = 0;
  bool skipped = false;
  std::string summary_json;
  std::vector<uint64_t> group_ids;
};

struct EvaluationRecord {
  uint64_t step = 0;
  uint64_t weight_version = 0;
  std::string settings;
  std::string summary_json;
};

struct LedgerCounts {
  uint64_t accepted = 0;  // samples
  uint64_t committed = 0;
  uint64_t dropped = 0;
  uint64_t pending = 0;
  uint64_t steps = 0;
  uint64_t epochs = 0;
};

// Not thread safe: the run loop owns it.
class Ledger {
 public:
  // Creates the file and its tables, or opens what is there. A file that is no ledger is refused.
  static absl::StatusOr<std::unique_ptr<Ledger>> Open(const std::string& path);
  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  // A new epoch, greater than all before. From here on this object writes with it; a Ledger object of an older epoch is
  // refused by every later write (FAILED_PRECONDITION): two learners cannot both write.
  absl::StatusOr<uint64_t> BeginEpoch();
  // Rolls back the steps after `checkpoint_step`. Returns the number rolled back.
  absl::StatusOr<uint64_t> Resume(uint64_t checkpoint_step);
  // Idempotent by group_id: false when the group was there already, and nothing was written.
  absl::StatusOr<bool> CommitGroup(const SampleGroup& group);
  // Records a step and marks its groups as committed. `step` must be the last one plus one, all groups must be accepted
  // for this very step, and nothing may be committed twice: FAILED_PRECONDITION names what differs.
  absl::Status CommitStep(const StepRecord& record);

  // Replaces what was recorded for the step.
  absl::Status CommitEvaluation(const EvaluationRecord& record);

  absl::StatusOr<std::optional<EvaluationRecord>> FindEvaluation(uint64_t step) const;
  absl::StatusOr<uint64_t> LastStep() const;
  // The accepted group, or nullopt.
  absl::StatusOr<std::optional<SampleGroup>> FindGroup(uint64_t group_id) const;
  absl::StatusOr<LedgerCounts> Counts() const;
  // Every invariant is a query that must find nothing. DATA_LOSS names the first that is broken, in words.
  absl::Status Audit() const;

 private:
  Ledger() = default;
  absl::Status CheckEpoch() const;

  sqlite3* database_ = nullptr;
  std::string path_;
  uint64_t epoch_ = 0;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_LEDGER_H_
