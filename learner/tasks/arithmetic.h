// Generated arithmetic for the quickstart and the experiments: additions with their column steps written out, 11 to 13
// characters a column; operands of 20 digits give responses of some 260 tokens.
//
//   prompt    "Q: 384+597="
//   response  "4+7=11 c1; 8+9+1=18 c1; 3+5+1=9 c0; A: 981"
//   answer    "981"
//
// Columns go from the ones upwards; ",+1" of a column is the carry that came in, cN the carry that goes out.
#ifndef LOCKSTEP_LEARNER_TASKS_ARITHMETIC_H_
#define LOCKSTEP_LEARNER_TASKS_ARITHMETIC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

struct ArithmeticProblem {
  std::string prompt;
  std::string response;
  std::string answer;
};

struct ArithmeticOptions {
  int64_t count = 1000;
  uint64_t seed = 0;
  int min_digits = 2;  // of each operand
  int max_digits = 4;  // at most 64
};

// Problem `index` is a pure function of (seed, index).
ArithmeticProblem MakeArithmeticProblem(const ArithmeticOptions& options, int64_t index);
// All of them, without two equal prompts where the range of operands is wide enough for that.
absl::StatusOr<std::vector<ArithmeticProblem>> MakeArithmeticProblems(const ArithmeticOptions& options);

// `count` problems, drawn again (attempt 1, 2, ...) where the prompt is there already, until 16 attempts failed.
absl::StatusOr<std::vector<ArithmeticProblem>> DistinctProblems(
    int64_t count, absl::FunctionRef<ArithmeticProblem(int64_t index, uint64_t attempt)> draw);

// JSON lines {"prompt", "response", "answer"} for supervised training.
std::string SftJsonl(const std::vector<ArithmeticProblem>& problems);
// JSON lines {"prompt", "answer"} for reinforcement learning.
std::string RlJsonl(const std::vector<ArithmeticProblem>& problems);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_TASKS_ARITHMETIC_H_
