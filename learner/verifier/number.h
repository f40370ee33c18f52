// Exact numbers as they are written: decimals of any length and fractions.
#ifndef LOCKSTEP_LEARNER_VERIFIER_NUMBER_H_
#define LOCKSTEP_LEARNER_VERIFIER_NUMBER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lockstep {

// digits * 10^exponent, without leading or trailing zeros in `digits`; zero has no digits and no sign.
struct Decimal {
  bool negative = false;
  std::string digits;
  int64_t exponent = 0;
  bool operator==(const Decimal&) const = default;
};

// numerator / denominator; the denominator is "1" where none is written, and never zero.
struct Number {
  Decimal numerator;
  Decimal denominator;
};

// The number at the start of `text`: [+-] digits, commas between groups of three, a decimal part, an exponent e[+-]N of
// at most 3 digits, and a denominator after "/" (no white space). `length` receives its bytes.
std::optional<Number> ParseNumberPrefix(std::string_view text, size_t* length);
// All of `text` is one number.
std::optional<Number> ParseNumber(std::string_view text);
// The last number in `text`. A "-" after a digit, letter or closing bracket is an operator, no sign.
std::optional<Number> LastNumber(std::string_view text);

// Exact for decimals of any length; for fractions exact where all four terms have at most 18 digits, else only equal
// spellings are equal.
bool Equal(const Number& a, const Number& b);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_VERIFIER_NUMBER_H_
