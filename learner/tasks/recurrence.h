// Generated sequences for the experiments: a task whose answers take hundreds of tokens, since every term needs those
// before it. x_n = (x_(n-1) + x_(n-3)) mod 10; the sums are written with both digits.
//
//   prompt    "Q: 3 8 1 04="                                    x_(-2), x_(-1), x_0 and how many terms
//   response  "01:1+3=04;02:4+8=12;03:2+1=03;04:3+4=07;A: 7"
//   answer    "7"
//
// 10 characters a term: 28 to 46 terms are 284 to 464 tokens. A wrong term makes the answer wrong but for one case in
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
  int min_terms = 28;
  int max_terms = 46;  // at most 99
};

// Without two equal prompts where there are enough; problem i is a pure function of (seed, i) and of those before it.
absl::StatusOr<std::vector<ArithmeticProblem>> MakeRecurrenceProblems(const RecurrenceOptions& options);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_TASKS_RECURRENCE_H_
