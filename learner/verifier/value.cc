#include "learner/verifier/value.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace lockstep {
namespace {

constexpr double kUnit = 2.3e-16;
constexpr double kRelativeTolerance = 1e-10;
// A value whose rounding error is larger than this part of it (and of 1) says nothing.
constexpr double kTrusted = 1e-9;
constexpr long kMaxFactorial = 250;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool TooLong(const mpq_class& value) {
  return mpz_sizeinbase(value.get_num_mpz_t(), 2) > kMaxValueBits ||
         mpz_sizeinbase(value.get_den_mpz_t(), 2) > kMaxValueBits;
}

std::optional<long> SmallInteger(const Value& value) {
  if (!value.exact || value.exact->get_den() != 1 || !value.exact->get_num().fits_slong_p()) return std::nullopt;
  return value.exact->get_num().get_si();
}

std::optional<Value> Inexact(std::complex<double> value, double error) {
  return FromComplex(value, error + 2 * kUnit * std::abs(value));
}

// base^exponent, exponent an integer.
std::optional<Value> IntegerPower(const mpq_class& base, long exponent) {
  if (base == 0) return exponent > 0 ? FromRational(0) : exponent == 0 ? FromRational(1) : std::nullopt;
  if (base == 1) return FromRational(1);
  if (base == -1) return FromRational(exponent % 2 == 0 ? 1 : -1);
  const size_t bits = std::max(mpz_sizeinbase(base.get_num_mpz_t(), 2), mpz_sizeinbase(base.get_den_mpz_t(), 2));
  if (exponent > static_cast<long>(kMaxValueBits) || exponent < -static_cast<long>(kMaxValueBits)) return std::nullopt;
  const size_t times = static_cast<size_t>(exponent < 0 ? -exponent : exponent);
  if ((bits - 1) * times > kMaxValueBits) return std::nullopt;
  mpz_class above, below;
  mpz_pow_ui(above.get_mpz_t(), base.get_num_mpz_t(), times);
  mpz_pow_ui(below.get_mpz_t(), base.get_den_mpz_t(), times);
  return FromRational(exponent < 0 ? mpq_class(below, above) : mpq_class(above, below));
}

// The root where it is a fraction.
std::optional<mpq_class> ExactRoot(const mpq_class& value, long degree) {
  if (degree < 1 || degree > 64 || (value < 0 && degree % 2 == 0)) return std::nullopt;
  mpz_class above, below;
  const auto n = static_cast<unsigned long>(degree);
  if (mpz_root(above.get_mpz_t(), value.get_num_mpz_t(), n) == 0) return std::nullopt;
  if (mpz_root(below.get_mpz_t(), value.get_den_mpz_t(), n) == 0) return std::nullopt;
  return mpq_class(above, below);
}

using Complex = std::complex<double>;
struct Function {
  std::string_view name;
  Complex (*apply)(const Complex&);
};
const Function kFunctions[] = {
    {"sin", [](const Complex& x) { return std::sin(x); }},
    {"cos", [](const Complex& x) { return std::cos(x); }},
    {"tan", [](const Complex& x) { return std::tan(x); }},
    {"cot", [](const Complex& x) { return 1.0 / std::tan(x); }},
    {"sec", [](const Complex& x) { return 1.0 / std::cos(x); }},
    {"csc", [](const Complex& x) { return 1.0 / std::sin(x); }},
    {"arcsin", [](const Complex& x) { return std::asin(x); }},
    {"arccos", [](const Complex& x) { return std::acos(x); }},
    {"arctan", [](const Complex& x) { return std::atan(x); }},
    {"sinh", [](const Complex& x) { return std::sinh(x); }},
    {"cosh", [](const Complex& x) { return std::cosh(x); }},
    {"tanh", [](const Complex& x) { return std::tanh(x); }},
    {"ln", [](const Complex& x) { return std::log(x); }},
    {"log", [](const Complex& x) { return std::log10(x); }},
    {"lg", [](const Complex& x) { return std::log10(x); }},
    {"exp", [](const Complex& x) { return std::exp(x); }},
    {"abs", [](const Complex& x) { return Complex(std::abs(x)); }},
    {"floor", [](const Complex& x) { return Complex(std::floor(x.real())); }},
    {"ceil", [](const Complex& x) { return Complex(std::ceil(x.real())); }},
};

}  // namespace

std::optional<Value> FromRational(mpq_class value) {
  if (value.get_den() == 0) return std::nullopt;
  value.canonicalize();
  if (TooLong(value)) return std::nullopt;
  Value result;
  result.approximate = value.get_d();
  result.error = kUnit * std::abs(result.approximate);
  result.exact = std::move(value);
  return result;
}

std::optional<Value> FromComplex(std::complex<double> value, double error) {
  if (!std::isfinite(value.real()) || !std::isfinite(value.imag()) || !std::isfinite(error)) return std::nullopt;
  return Value{std::nullopt, value, error};
}

std::optional<Value> FromDecimal(std::string_view text) {
  std::string digits;
  long exponent = 0;
  bool point = false;
  size_t at = 0;
  for (; at < text.size() && (IsDigit(text[at]) || text[at] == '.'); ++at) {
    if (text[at] == '.') {
      if (point) return std::nullopt;
      point = true;
      continue;
    }
    digits += text[at];
    exponent -= point;
  }
  // log2(10) > 3: a longer number has more bits than are allowed, unless it begins with zeros.
  digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size() - 1));
  if (digits.empty() || digits.size() > kMaxValueBits / 3) return std::nullopt;
  if (at < text.size()) {
    if (text[at] != 'e' && text[at] != 'E') return std::nullopt;
    ++at;
    const bool negative = at < text.size() && text[at] == '-';
    if (at < text.size() && (text[at] == '-' || text[at] == '+')) ++at;
    if (at == text.size() || text.size() - at > 3) return std::nullopt;
    long written = 0;
    for (; at < text.size(); ++at) {
      if (!IsDigit(text[at])) return std::nullopt;
      written = written * 10 + (text[at] - '0');
    }
    exponent += negative ? -written : written;
  }
  if (exponent > 1000 || exponent < -2000) return std::nullopt;
  mpz_class whole(digits, 10), power;
  mpz_ui_pow_ui(power.get_mpz_t(), 10, static_cast<unsigned long>(exponent < 0 ? -exponent : exponent));
  return FromRational(exponent < 0 ? mpq_class(whole, power) : mpq_class(whole * power));
}

std::optional<Value> Add(const Value& a, const Value& b) {
  if (a.exact && b.exact) return FromRational(*a.exact + *b.exact);
  return Inexact(a.approximate + b.approximate, a.error + b.error);
}

std::optional<Value> Subtract(const Value& a, const Value& b) {
  if (a.exact && b.exact) return FromRational(*a.exact - *b.exact);
  return Inexact(a.approximate - b.approximate, a.error + b.error);
}

std::optional<Value> Multiply(const Value& a, const Value& b) {
  if (a.exact && b.exact) return FromRational(*a.exact * *b.exact);
  if ((a.exact && *a.exact == 0) || (b.exact && *b.exact == 0)) return FromRational(0);
  return Inexact(a.approximate * b.approximate, std::abs(a.approximate) * b.error + std::abs(b.approximate) * a.error);
}

std::optional<Value> Divide(const Value& a, const Value& b) {
  if (b.exact && *b.exact == 0) return std::nullopt;
  if (a.exact && b.exact) return FromRational(*a.exact / *b.exact);
  const double below = std::abs(b.approximate);
  if (!(below > 2 * b.error)) return std::nullopt;  // as good as zero
  const Complex quotient = a.approximate / b.approximate;
  return Inexact(quotient, (a.error + std::abs(quotient) * b.error) / below);
}

std::optional<Value> Power(const Value& base, const Value& exponent) {
  const std::optional<long> n = SmallInteger(exponent);
  if (base.exact && n) return IntegerPower(*base.exact, *n);
  if (base.exact && exponent.exact) {
    if (exponent.exact->get_den().fits_slong_p() && exponent.exact->get_num().fits_slong_p()) {
      const auto root = ExactRoot(*base.exact, exponent.exact->get_den().get_si());
      if (root) return IntegerPower(*root, exponent.exact->get_num().get_si());
    } else if (exponent.exact->get_den() == 1) {
      return std::nullopt;  // an integer power that is too long
    }
  }
  if (base.exact && *base.exact == 0) return std::nullopt;
  const double size = std::abs(base.approximate);
  if (!(size > 2 * base.error)) return std::nullopt;
  const Complex power = std::pow(base.approximate, exponent.approximate);
  const double relative =
      std::abs(exponent.approximate) * base.error / size +
      std::abs(std::log(base.approximate)) * (exponent.error + kUnit * std::abs(exponent.approximate));
  return Inexact(power, std::abs(power) * relative);
}

std::optional<Value> Root(const Value& value, const Value& degree) {
  if (value.exact && *value.exact == 0) return value;
  const std::optional<Value> one = FromRational(1);
  const std::optional<Value> exponent = Divide(*one, degree);
  if (!exponent) return std::nullopt;
  const std::optional<long> n = SmallInteger(degree);
  // The real root of a negative number, where there is one.
  if (n && *n % 2 != 0 && value.approximate.imag() == 0 && value.approximate.real() < 0) {
    const std::optional<Value> positive = Subtract(*FromRational(0), value);
    const std::optional<Value> root = positive ? Power(*positive, *exponent) : std::nullopt;
    return root ? Subtract(*FromRational(0), *root) : std::nullopt;
  }
  return Power(value, *exponent);
}

std::optional<Value> Factorial(const Value& value) {
  const std::optional<long> n = SmallInteger(value);
  if (!n || *n < 0 || *n > kMaxFactorial) return std::nullopt;
  mpz_class result;
  mpz_fac_ui(result.get_mpz_t(), static_cast<unsigned long>(*n));
  return FromRational(mpq_class(result));
}

std::optional<Value> Binomial(const Value& n, const Value& k) {
  const std::optional<long> above = SmallInteger(n), below = SmallInteger(k);
  if (!above || !below || *below < 0 || *above < *below || *above > 2000) return std::nullopt;
  mpz_class result;
  mpz_bin_uiui(result.get_mpz_t(), static_cast<unsigned long>(*above), static_cast<unsigned long>(*below));
  return FromRational(mpq_class(result));
}

bool IsFunction(std::string_view name) {
  return std::any_of(std::begin(kFunctions), std::end(kFunctions), [&](const Function& f) { return f.name == name; });
}

std::optional<Value> Apply(std::string_view function, const Value& argument) {
  if (argument.exact) {
    const mpq_class& x = *argument.exact;
    mpz_class whole;
    if (function == "abs") return FromRational(abs(x));
    if (function == "floor" || function == "ceil") {
      (function == "floor" ? mpz_fdiv_q : mpz_cdiv_q)(whole.get_mpz_t(), x.get_num_mpz_t(), x.get_den_mpz_t());
      return FromRational(mpq_class(whole));
    }
    if (x == 0 && (function == "sin" || function == "tan" || function == "arcsin" || function == "arctan" ||
                   function == "sinh" || function == "tanh")) {
      return FromRational(0);
    }
    if (x == 0 && (function == "cos" || function == "exp" || function == "cosh")) return FromRational(1);
    if (function == "ln" && x == 1) return FromRational(0);
    if (function == "log" || function == "lg") {
      // A power of ten has an exact logarithm.
      const double power = std::round(std::log10(std::abs(argument.approximate)));
      const auto ten = std::abs(power) < 300 ? IntegerPower(10, static_cast<long>(power)) : std::nullopt;
      if (ten && *ten->exact == x) return FromRational(static_cast<long>(power));
    }
  }
  for (const Function& f : kFunctions) {
    if (f.name != function) continue;
    const Complex y = f.apply(argument.approximate);
    // The slope by a difference: rounding errors pass through with it.
    const double step = 1e-6 * std::max(1.0, std::abs(argument.approximate));
    const double slope = std::abs(f.apply(argument.approximate + step) - y) / step;
    return Inexact(y, slope * (argument.error + kUnit * std::abs(argument.approximate)) + kUnit);
  }
  return std::nullopt;
}

bool Same(const Value& a, const Value& b) {
  if (a.exact && b.exact) return *a.exact == *b.exact;
  const double size = std::max(std::abs(a.approximate), std::abs(b.approximate));
  const double error = a.error + b.error;
  if (!std::isfinite(size) || error > kTrusted * std::max(size, 1e-3)) return false;
  return std::abs(a.approximate - b.approximate) <= kRelativeTolerance * size + 4 * error;
}

}  // namespace lockstep
