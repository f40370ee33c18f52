#include "learner/verifier/number.h"

#include <algorithm>
#include <utility>

namespace lockstep {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

size_t CountDigits(std::string_view text, size_t at) {
  size_t n = 0;
  while (at + n < text.size() && IsDigit(text[at + n])) ++n;
  return n;
}

// Digits with commas at every third place: "1,234,567". Returns the bytes consumed.
size_t ReadInteger(std::string_view text, size_t at, std::string* digits) {
  size_t n = CountDigits(text, at);
  digits->append(text.substr(at, n));
  if (n == 0 || n > 3) return n;
  while (at + n < text.size() && text[at + n] == ',' && CountDigits(text.substr(0, at + n + 5), at + n + 1) == 3 &&
         !(at + n + 4 < text.size() && IsDigit(text[at + n + 4]))) {
    digits->append(text.substr(at + n + 1, 3));
    n += 4;
  }
  return n;
}

void Normalize(Decimal* value) {
  size_t end = value->digits.size();
  while (end > 0 && value->digits[end - 1] == '0') --end;
  value->exponent += static_cast<int64_t>(value->digits.size() - end);
  value->digits.resize(end);
  value->digits.erase(0, value->digits.find_first_not_of('0'));
  if (value->digits.empty()) *value = Decimal();
}

// e or E, a sign, 1 to 3 digits that no further digit or letter follows ("3e" and "2eggs" are no exponents).
size_t ReadExponent(std::string_view text, size_t at, int64_t* exponent) {
  if (at >= text.size() || (text[at] != 'e' && text[at] != 'E')) return 0;
  size_t n = 1;
  const bool negative = at + n < text.size() && text[at + n] == '-';
  if (at + n < text.size() && (text[at + n] == '-' || text[at + n] == '+')) ++n;
  const size_t digits = CountDigits(text, at + n);
  if (digits < 1 || digits > 3 || (at + n + digits < text.size() && IsLetter(text[at + n + digits]))) return 0;
  int64_t value = 0;
  for (size_t i = 0; i < digits; ++i) value = value * 10 + (text[at + n + i] - '0');
  *exponent = negative ? -value : value;
  return n + digits;
}

std::optional<Decimal> ReadDecimal(std::string_view text, size_t* length) {
  Decimal value;
  size_t at = 0;
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) {
    value.negative = text[0] == '-';
    at = 1;
  }
  at += ReadInteger(text, at, &value.digits);
  if (at < text.size() && text[at] == '.') {
    const size_t fraction = CountDigits(text, at + 1);
    if (fraction > 0) {
      value.digits.append(text.substr(at + 1, fraction));
      value.exponent = -static_cast<int64_t>(fraction);
      at += 1 + fraction;
    }
  }
  if (value.digits.empty()) return std::nullopt;
  int64_t exponent = 0;
  at += ReadExponent(text, at, &exponent);
  value.exponent += exponent;
  Normalize(&value);
  *length = at;
  return value;
}

Decimal One() { return {false, "1", 0}; }

// |value| as an integer times 10^shift_down; nothing where that has more than 18 digits.
std::optional<__int128> Scaled(const Decimal& value, int64_t lowest_exponent) {
  const int64_t zeros = value.exponent - lowest_exponent;
  if (static_cast<int64_t>(value.digits.size()) + zeros > 18) return std::nullopt;
  __int128 result = 0;
  for (const char c : value.digits) result = result * 10 + (c - '0');
  for (int64_t i = 0; i < zeros; ++i) result *= 10;
  return value.negative ? -result : result;
}

}  // namespace

std::optional<Number> ParseNumberPrefix(std::string_view text, size_t* length) {
  size_t at = 0;
  std::optional<Decimal> numerator = ReadDecimal(text, &at);
  if (!numerator) return std::nullopt;
  *length = at;
  Number number = {*std::move(numerator), One()};
  if (at + 1 < text.size() && text[at] == '/') {
    size_t below = 0;
    const std::optional<Decimal> denominator = ReadDecimal(text.substr(at + 1), &below);
    if (denominator && !denominator->digits.empty()) {
      number.denominator = *denominator;
      *length = at + 1 + below;
    }
  }
  return number;
}

std::optional<Number> ParseNumber(std::string_view text) {
  size_t length = 0;
  std::optional<Number> number = ParseNumberPrefix(text, &length);
  if (!number || length != text.size()) return std::nullopt;
  return number;
}

std::optional<Number> LastNumber(std::string_view text) {
  std::optional<Number> last;
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    const char before = at == 0 ? ' ' : text[at - 1];
    const bool operand_before = IsDigit(before) || IsLetter(before) || before == ')' || before == ']' || before == '}';
    const bool sign = (c == '-' || c == '+') && !operand_before;
    const bool point = c == '.' && !IsDigit(before);
    size_t length = 0;
    std::optional<Number> number;
    if (IsDigit(c) || sign || point) number = ParseNumberPrefix(text.substr(at), &length);
    if (number) last = std::move(number);
    at += length > 0 ? length : 1;
  }
  return last;
}

bool Equal(const Number& a, const Number& b) {
  if (a.denominator == b.denominator) return a.numerator == b.numerator;
  // a.n * b.d == b.n * a.d, as integers after scaling each side's factors to whole numbers.
  const int64_t numerators = std::min(a.numerator.exponent, b.numerator.exponent);
  const int64_t denominators = std::min(a.denominator.exponent, b.denominator.exponent);
  const auto an = Scaled(a.numerator, numerators), bn = Scaled(b.numerator, numerators);
  const auto ad = Scaled(a.denominator, denominators), bd = Scaled(b.denominator, denominators);
  return an && bn && ad && bd && *an * *bd == *bn * *ad;
}

}  // namespace lockstep
