// A number of an answer: exact as a fraction where that is possible, else complex with a bound of its rounding error.
#ifndef LOCKSTEP_LEARNER_VERIFIER_VALUE_H_
#define LOCKSTEP_LEARNER_VERIFIER_VALUE_H_

#include <gmpxx.h>

#include <complex>
#include <cstdint>
#include <optional>
#include <string_view>

namespace lockstep {

// Numerators and denominators beyond this are refused: every operation takes bounded time and memory.
inline constexpr size_t kMaxValueBits = 2048;

struct Value {
  std::optional<mpq_class> exact;
  std::complex<double> approximate;
  double error = 0;  // |approximate - the true value| is about this at most
};

// Nothing: division by zero, not finite, or too long.
std::optional<Value> FromRational(mpq_class value);
std::optional<Value> FromComplex(std::complex<double> value, double error);
// Digits, one point at most, and an exponent e[+-]N of at most 3 digits.
std::optional<Value> FromDecimal(std::string_view text);

std::optional<Value> Add(const Value& a, const Value& b);
std::optional<Value> Subtract(const Value& a, const Value& b);
std::optional<Value> Multiply(const Value& a, const Value& b);
std::optional<Value> Divide(const Value& a, const Value& b);
std::optional<Value> Power(const Value& base, const Value& exponent);
std::optional<Value> Root(const Value& value, const Value& degree);
std::optional<Value> Factorial(const Value& value);
std::optional<Value> Binomial(const Value& n, const Value& k);
// "sin", "arcsin", "sinh", "ln", "log" (base 10), "exp", "abs", "floor", "ceil", ...; nothing for an unknown name.
std::optional<Value> Apply(std::string_view function, const Value& argument);
bool IsFunction(std::string_view name);

// Exact values are equal exactly; others to a relative 1e-10, and never when rounding errors hide the difference.
bool Same(const Value& a, const Value& b);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_VERIFIER_VALUE_H_
