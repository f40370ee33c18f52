// Generated sequences for the experiments: a task whose answers take hundreds of tokens, since every term needs those
// before it. x_n = (x_(n-1) + x_(n-3)) mod 10.
//
//   prompt    "Q: 3 8 1 04="                                    x_(-2), x_(-1), x_0 and how many terms
//   response  "01:1+3=4;02:4+8=2;03:2+1=3;04:3+4=7;A: 7"
//   answer    "7"
//
// 9 characters a term: 30 to 52 terms are 274 to 472 tokens. A wrong term makes the answer wrong but for one case in
// ten.
#ifndef LOCKSTEP_LEARNER_TASKS_RECURRENCE_H_
#define LOCKSTEP_LEARNER_TASKS_RECURRENCE_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "learner/tasks/arithmetic.h"

namespace lockstep {

struct RecurrenceOptions {
  int64_t count = 1000;
  uint64_t seed = 0;
  int min_terms = 30;
  int max_terms = 52;  // at most 99
};

// Without two equal prompts where there are enough; problem i is a pure function of (seed, i) and of those before it.
absl::StatusOr<std::vector<ArithmeticProblem>> MakeRecurrenceProblems(const RecurrenceOptions& options);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_TASKS_RECURRENCE_H_
