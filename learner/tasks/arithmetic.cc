#include "learner/tasks/arithmetic.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/philox.h"
#include "nlohmann/json.hpp"

namespace lockstep {
namespace {

constexpr int kMaxDigits = 64;
constexpr int kBlockDigits = 9;  // as many as 32 random bits can fill

uint64_t PowerOfTen(int exponent) {
  uint64_t value = 1;
  for (int i = 0; i < exponent; ++i) value *= 10;
  return value;
}

// Uniform in [0, bound) from 32 random bits; the bias of 2^-32 times bound is of no matter here.
uint64_t Below(uint32_t bits, uint64_t bound) { return uint64_t{bits} * bound >> 32; }

// A number of min_digits to max_digits digits: first the number of digits, then a leading block of at most nine digits
// from value_bits, then blocks of nine from draws of their own. which: 0 the first operand, 1 the second.
std::string Operand(const ArithmeticOptions& options, int64_t index, uint64_t attempt, int which) {
  const uint64_t seed = options.seed, position = static_cast<uint64_t>(index);
  const auto bits = Philox4x32(seed, position, attempt);
  const int digits =
      options.min_digits + static_cast<int>(Below(bits[2 * which], options.max_digits - options.min_digits + 1));
  const int leading = (digits - 1) % kBlockDigits + 1;
  const uint64_t low = leading == 1 && digits == 1 ? 0 : PowerOfTen(leading - 1);
  std::string text = absl::StrCat(low + Below(bits[2 * which + 1], PowerOfTen(leading) - low));
  for (uint64_t block = 1; static_cast<int>(text.size()) < digits; ++block) {
    const auto more = Philox4x32(seed, position, attempt + (block << 32));
    absl::StrAppend(&text, absl::Dec(Below(more[which], PowerOfTen(kBlockDigits)), absl::kZeroPad9));
  }
  return text;
}

// Fills `steps` with the columns, the ones first, and returns the sum.
std::string Add(const std::string& a, const std::string& b, std::string* steps) {
  std::string sum;
  int carry = 0;
  const auto digit = [](const std::string& x, size_t column) {
    return column < x.size() ? x[x.size() - 1 - column] - '0' : 0;
  };
  for (size_t column = 0; column < std::max(a.size(), b.size()); ++column) {
    const int x = digit(a, column), y = digit(b, column), z = x + y + carry;
    absl::StrAppend(steps, x, "+", y);
    if (carry > 0) absl::StrAppend(steps, "+1");
    absl::StrAppend(steps, "=", z, " c", z / 10, "; ");
    carry = z / 10;
    sum.insert(sum.begin(), static_cast<char>('0' + z % 10));
  }
  if (carry > 0) sum.insert(sum.begin(), '1');
  return sum;
}

ArithmeticProblem Draw(const ArithmeticOptions& options, int64_t index, uint64_t attempt) {
  const std::string a = Operand(options, index, attempt, 0);
  const std::string b = Operand(options, index, attempt, 1);
  std::string steps;
  const std::string answer = Add(a, b, &steps);
  return {absl::StrCat("Q: ", a, "+", b, "="), absl::StrCat(steps, "A: ", answer), answer};
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
  return DistinctProblems(options.count,
                          [&](int64_t index, uint64_t attempt) { return Draw(options, index, attempt); });
}

absl::StatusOr<std::vector<ArithmeticProblem>> DistinctProblems(
    int64_t count, absl::FunctionRef<ArithmeticProblem(int64_t index, uint64_t attempt)> draw) {
  if (count < 0) return absl::InvalidArgumentError(absl::StrCat("count is ", count, ", must be >= 0"));
  std::vector<ArithmeticProblem> problems;
  std::unordered_set<std::string> seen;
  // Few operands may leave no unused prompt; then equal ones are allowed.
  constexpr uint64_t kAttempts = 16;
  for (int64_t index = 0; index < count; ++index) {
    ArithmeticProblem problem = draw(index, 0);
    for (uint64_t attempt = 1; attempt < kAttempts && seen.count(problem.prompt) > 0; ++attempt) {
      problem = draw(index, attempt);
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
