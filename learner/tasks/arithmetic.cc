#include "learner/tasks/arithmetic.h"

#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/philox.h"
#include "nlohmann/json.hpp"

namespace lockstep {
namespace {

constexpr int kMaxDigits = 9;

uint64_t PowerOfTen(int exponent) {
  uint64_t value = 1;
  for (int i = 0; i < exponent; ++i) value *= 10;
  return value;
}

// Uniform in [0, bound) from 32 random bits; the bias of 2^-32 times bound is of no matter here.
uint64_t Below(uint32_t bits, uint64_t bound) { return uint64_t{bits} * bound >> 32; }

// A number of min_digits to max_digits digits: first the number of digits, then the value.
uint64_t Operand(const ArithmeticOptions& options, uint32_t digit_bits, uint32_t value_bits) {
  const int digits =
      options.min_digits + static_cast<int>(Below(digit_bits, options.max_digits - options.min_digits + 1));
  const uint64_t low = digits == 1 ? 0 : PowerOfTen(digits - 1);
  return low + Below(value_bits, PowerOfTen(digits) - low);
}

std::string Steps(uint64_t a, uint64_t b) {
  std::string text;
  uint64_t carry = 0;
  bool first = true;
  for (uint64_t x = a, y = b; first || x > 0 || y > 0; x /= 10, y /= 10, first = false) {
    const uint64_t sum = x % 10 + y % 10 + carry;
    absl::StrAppend(&text, x % 10, "+", y % 10);
    if (carry > 0) absl::StrAppend(&text, "+1");
    absl::StrAppend(&text, "=", sum, " c", sum / 10, "; ");
    carry = sum / 10;
  }
  return text;
}

ArithmeticProblem Draw(const ArithmeticOptions& options, int64_t index, uint64_t attempt) {
  const auto bits = Philox4x32(options.seed, static_cast<uint64_t>(index), attempt);
  const uint64_t a = Operand(options, bits[0], bits[1]);
  const uint64_t b = Operand(options, bits[2], bits[3]);
  const std::string answer = absl::StrCat(a + b);
  return {absl::StrCat("Q: ", a, "+", b, "="), absl::StrCat(Steps(a, b), "A: ", answer), answer};
}

}  // namespace

ArithmeticProblem MakeArithmeticProblem(const ArithmeticOptions& options, int64_t index) {
  return Draw(options, index, 0);
}

absl::StatusOr<std::vector<ArithmeticProblem>> MakeArithmeticProblems(const ArithmeticOptions& options) {
  if (options.min_digits < 1 || options.max_digits > kMaxDigits || options.min_digits > options.max_digits) {
    return absl::InvalidArgumentError(absl::StrCat("digits of operands are ", options.min_digits, " to ",
                                                   options.max_digits, ", must be within 1 to ", kMaxDigits));
  }
  if (options.count < 0) return absl::InvalidArgumentError(absl::StrCat("count is ", options.count, ", must be >= 0"));
  std::vector<ArithmeticProblem> problems;
  std::unordered_set<std::string> seen;
  // Few operands may leave no unused prompt; then equal ones are allowed.
  constexpr uint64_t kAttempts = 16;
  for (int64_t index = 0; index < options.count; ++index) {
    ArithmeticProblem problem = Draw(options, index, 0);
    for (uint64_t attempt = 1; attempt < kAttempts && seen.count(problem.prompt) > 0; ++attempt) {
      problem = Draw(options, index, attempt);
    }
    seen.insert(problem.prompt);
    problems.push_back(std::move(problem));
  }
  return problems;
}

std::string SftJsonl(const std::vector<ArithmeticProblem>& problems) {
  std::string lines;
  for (const ArithmeticProblem& problem : problems) {
    nlohmann::ordered_json line = {
        {"prompt", problem.prompt}, {"response", problem.response}, {"answer", problem.answer}};
    lines += line.dump() + "\n";
  }
  return lines;
}

std::string RlJsonl(const std::vector<ArithmeticProblem>& problems) {
  std::string lines;
  for (const ArithmeticProblem& problem : problems) {
    nlohmann::ordered_json line = {{"prompt", problem.prompt}, {"answer", problem.answer}};
    lines += line.dump() + "\n";
  }
  return lines;
}

}  // namespace lockstep
