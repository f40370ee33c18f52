// Grading of finished responses in a file: what `lockstep grade` does.
#ifndef LOCKSTEP_LEARNER_GRADE_H_
#define LOCKSTEP_LEARNER_GRADE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "learner/verifier/verifier.h"

namespace lockstep {

struct GradeSummary {
  uint64_t lines = 0;
  uint64_t right = 0;  // reward 1
  double reward_sum = 0;
};

// `path` is JSONL with `response`, `answer` (text or a number) and perhaps `reward_kind` a line; empty lines are left
// out. Writes each line, byte for byte, with `reward` added (or replaced) to `out`, which may be `path`: whole or,
// after an error, not at all. Holds one line at a time; a line has at most 64 MiB. Errors are one line: FILE:LINE:
// what.
absl::StatusOr<GradeSummary> GradeFile(const std::string& path, const std::string& out, RewardKind kind);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_GRADE_H_
