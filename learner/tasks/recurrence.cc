#include "learner/tasks/recurrence.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/philox.h"

namespace lockstep {
namespace {

constexpr int kMaxTerms = 99;
constexpr int kModulus = 10;

// Uniform in [0, bound) from 32 random bits.
int Below(uint32_t bits, int bound) { return static_cast<int>(uint64_t{bits} * static_cast<uint64_t>(bound) >> 32); }

std::string TwoDigits(int value) { return absl::StrCat(absl::Dec(value, absl::kZeroPad2)); }

ArithmeticProblem Draw(const RecurrenceOptions& options, int64_t index, uint64_t attempt) {
  const auto bits = Philox4x32(options.seed, static_cast<uint64_t>(index), attempt);
  int third = Below(bits[0], kModulus), second = Below(bits[1], kModulus), last = Below(bits[2], kModulus);
  const int terms = options.min_terms + Below(bits[3], options.max_terms - options.min_terms + 1);
  ArithmeticProblem problem;
  problem.prompt = absl::StrCat("Q: ", third, " ", second, " ", last, " ", TwoDigits(terms), "=");
  for (int term = 1; term <= terms; ++term) {
    const int sum = last + third;
    absl::StrAppend(&problem.response, TwoDigits(term), ":", last, "+", third, "=", TwoDigits(sum), ";");
    third = std::exchange(second, std::exchange(last, sum % kModulus));
  }
  problem.answer = absl::StrCat(last);
  absl::StrAppend(&problem.response, "A: ", problem.answer);
  return problem;
}

}  // namespace

absl::StatusOr<std::vector<ArithmeticProblem>> MakeRecurrenceProblems(const RecurrenceOptions& options) {
  if (options.min_terms < 1 || options.max_terms > kMaxTerms || options.min_terms > options.max_terms) {
    return absl::InvalidArgumentError(absl::StrCat("terms of a sequence are ", options.min_terms, " to ",
                                                   options.max_terms, ", must be within 1 to ", kMaxTerms));
  }
  return DistinctProblems(options.count,
                          [&](int64_t index, uint64_t attempt) { return Draw(options, index, attempt); });
}

}  // namespace lockstep
