// Generated sequences for the experiments: a task whose answers take hundreds of tokens, since every term needs the one
// before it. x_(i+1) = (x_(i-1) + x_i) mod 100, all numbers of two digits.
//
//   prompt    "Q: 31 52 04="                                                       x_(-1), x_0 and how many terms
//   response  "01:31+52=83;02:52+83=35;03:83+35=18;04:35+18=53;A: 53"
//   answer    "53"
//
// 12 characters a term: 20 to 40 terms are 245 to 485 tokens. A response is right only if all of its terms are (two
// wrong ones cancel now and then).
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
  int min_terms = 20;
  int max_terms = 40;  // at most 99
};

// Without two equal prompts where there are enough; problem i is a pure function of (seed, i) and of those before it.
absl::StatusOr<std::vector<ArithmeticProblem>> MakeRecurrenceProblems(const RecurrenceOptions& options);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_TASKS_RECURRENCE_H_
