#include "learner/verifier/expression.h"

#include <algorithm>
#include <cstdint>
#include <numbers>
#include <string>
#include <utility>

namespace lockstep {
namespace {

constexpr int kMaxDepth = 48;
constexpr std::string_view kGreek[] = {"alpha",  "beta",  "gamma",  "delta", "epsilon", "varepsilon", "zeta",  "eta",
                                       "theta",  "kappa", "lambda", "mu",    "nu",      "xi",         "rho",   "sigma",
                                       "tau",    "phi",   "chi",    "psi",   "omega",   "Gamma",      "Delta", "Theta",
                                       "Lambda", "Sigma", "Phi",    "Psi",   "Omega",   "ell"};

// A fraction in 64ths, of size 0.5 to 2.5, that depends on name and point alone; both signs occur.
std::optional<Value> VariableAt(std::string_view name, int point) {
  uint64_t hash = 0xcbf29ce484222325ull + static_cast<uint64_t>(point) * 0x9e3779b97f4a7c15ull;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  hash ^= hash >> 29;
  hash *= 0xbf58476d1ce4e5b9ull;
  hash ^= hash >> 32;
  const long above = 33 + static_cast<long>(hash % 127);
  return FromRational(mpq_class(point >= 2 && (hash >> 40) % 2 == 0 ? -above : above, 64));
}

// Recursive descent that computes as it reads, at one point.
class Evaluator {
 public:
  Evaluator(std::span<const Token> tokens, int sign, int point) : tokens_(tokens), sign_(sign), point_(point) {}

  std::optional<Value> Run() {
    std::optional<Value> value = Sum();
    if (at_ != tokens_.size()) bad_syntax_ = true;
    return bad_syntax_ ? std::nullopt : value;
  }
  bool bad_syntax() const { return bad_syntax_; }
  bool has_variables() const { return has_variables_; }

 private:
  using Result = std::optional<Value>;

  bool AtEnd() const { return at_ >= tokens_.size() || bad_syntax_; }
  const Token& Peek(size_t ahead = 0) const {
    static const Token kEnd{TokenKind::kSymbol, "", false};
    return at_ + ahead < tokens_.size() ? tokens_[at_ + ahead] : kEnd;
  }
  bool Take(std::string_view symbol) {
    if (AtEnd() || !Peek().Symbol(symbol)) return false;
    ++at_;
    return true;
  }
  Result Fail() {
    bad_syntax_ = true;
    return std::nullopt;
  }
  // A value that does not exist (1/0) is no syntax error: reading goes on, the outcome is nothing.
  template <typename Operation>
  static Result Both(const Result& a, const Result& b, Operation operation) {
    return a && b ? operation(*a, *b) : std::nullopt;
  }

  // +1, -1, or 0 where there is no sign.
  int TakeSign() {
    if (AtEnd()) return 0;
    const Token& token = Peek();
    int sign = 0;
    if (token.Symbol("+")) sign = 1;
    if (token.Symbol("-")) sign = -1;
    if (token.Command("pm")) sign = sign_;
    if (token.Command("mp")) sign = -sign_;
    at_ += sign != 0;
    return sign;
  }

  Result Sum() {
    if (++depth_ > kMaxDepth) return Fail();
    const int first = TakeSign();
    Result sum = Product();
    if (first < 0) sum = Both(FromRational(0), sum, Subtract);
    for (int sign = TakeSign(); sign != 0; sign = TakeSign()) {
      const Result term = Product();
      sum = Both(sum, term, sign > 0 ? Add : Subtract);
    }
    --depth_;
    return sum;
  }

  Result Product() {
    Result product = Signed();
    while (!AtEnd()) {
      if (Take("*")) {
        product = Both(product, Signed(), Multiply);
      } else if (Take("/")) {
        product = Both(product, Signed(), Divide);
      } else if (BeginsFactor() && Peek().kind != TokenKind::kNumber) {
        product = Both(product, Factor(), Multiply);
      } else {
        break;
      }
    }
    return product;
  }

  Result Signed() {
    const int sign = TakeSign();
    Result value = Factor();
    return sign < 0 ? Both(FromRational(0), value, Subtract) : value;
  }

  bool BeginsFactor() const {
    if (AtEnd()) return false;
    const Token& token = Peek();
    switch (token.kind) {
      case TokenKind::kNumber:
      case TokenKind::kLetter:
        return true;
      case TokenKind::kCommand:
        return IsFunction(token.text) || IsAtomCommand(token.text);
      case TokenKind::kText:
        return false;
      case TokenKind::kSymbol:
        return token.text == "(" || token.text == "[" || token.text == "{" || (token.text == "|" && bars_ == 0);
    }
    return false;
  }
  static bool IsAtomCommand(std::string_view name) {
    return name == "frac" || name == "sqrt" || name == "pi" || name == "binom" || name == "lfloor" || name == "lceil" ||
           std::find(std::begin(kGreek), std::end(kGreek), name) != std::end(kGreek);
  }

  // Base with what stands behind it: powers, factorials, degrees.
  Result Factor() {
    if (++depth_ > kMaxDepth) return Fail();
    Result value = Base();
    while (!AtEnd()) {
      if (Take("^")) {
        value = Both(value, Exponent(), Power);
      } else if (Take("!")) {
        value = value ? Factorial(*value) : std::nullopt;
      } else if (Peek().Is(TokenKind::kText, "degree")) {
        ++at_;
        value = Both(value, FromComplex(std::numbers::pi / 180, 1e-18), Multiply);
      } else {
        break;
      }
    }
    --depth_;
    return value;
  }

  Result Exponent() {
    const int sign = TakeSign();
    Result value = Peek().Symbol("{") ? Group("}") : Factor();
    return sign < 0 ? Both(FromRational(0), value, Subtract) : value;
  }

  // The sum between an opening symbol, which is next, and `close`.
  Result Group(std::string_view close) {
    ++at_;
    const int bars = std::exchange(bars_, close == "|" ? 1 : 0);
    Result value = Sum();
    bars_ = bars;
    if (!Take(close)) return Fail();
    return value;
  }

  Result Argument() {
    if (AtEnd()) return Fail();
    return Peek().Symbol("{") ? Group("}") : Base();
  }

  Result Base() {
    if (AtEnd() || ++depth_ > kMaxDepth) return Fail();
    const Token& token = Peek();
    Result value;
    if (token.kind == TokenKind::kNumber) {
      value = NumberOrMixed();
    } else if (token.kind == TokenKind::kLetter) {
      value = Letter();
    } else if (token.kind == TokenKind::kCommand) {
      value = Command();
    } else if (token.Symbol("(") || token.Symbol("[") || token.Symbol("{")) {
      value = Group(token.text == "(" ? ")" : token.text == "[" ? "]" : "}");
    } else if (token.Symbol("|")) {
      value = Group("|");
      value = value ? Apply("abs", *value) : std::nullopt;
    } else {
      value = Fail();
    }
    --depth_;
    return value;
  }

  bool IsWhole(size_t ahead) const {
    const Token& token = Peek(ahead);
    return token.kind == TokenKind::kNumber && token.text.find_first_not_of("0123456789") == std::string::npos;
  }

  // 5, 1\frac{4}{5} and "1 4/5".
  Result NumberOrMixed() {
    const bool whole = IsWhole(0);
    Result number = FromDecimal(tokens_[at_++].text);
    if (!whole) return number;
    size_t above = 0, below = 0, length = 0;
    if (Peek().Command("frac")) {
      size_t at = 1;
      for (size_t* part : {&above, &below}) {
        const bool braces = Peek(at).Symbol("{");
        *part = at + braces;
        if (!IsWhole(*part) || (braces && !Peek(at + 2).Symbol("}"))) return number;
        at += braces ? 3 : 1;
      }
      length = at;
    } else if (IsWhole(0) && Peek().space_before && Peek(1).Symbol("/") && IsWhole(2)) {
      below = 2;
      length = 3;
    } else {
      return number;
    }
    const Result part = Both(FromDecimal(Peek(above).text), FromDecimal(Peek(below).text), Divide);
    at_ += length;
    return Both(number, part, Add);
  }

  Result Letter() {
    std::string name = tokens_[at_++].text;
    if (name == "e" && !Peek().Symbol("_")) return FromComplex(std::numbers::e, 1e-16);
    if (name == "i" && !Peek().Symbol("_")) return FromComplex({0, 1}, 0);
    return Variable(std::move(name));
  }

  Result Variable(std::string name) {
    has_variables_ = true;
    if (Take("_")) {
      const bool group = Take("{");
      name += "_";
      do {
        if (AtEnd() || Peek().kind == TokenKind::kSymbol) return Fail();
        name += tokens_[at_++].text;
      } while (group && !Take("}"));
    }
    return VariableAt(name, point_);
  }

  Result Command() {
    const std::string& name = tokens_[at_++].text;
    if (name == "pi") return FromComplex(std::numbers::pi, 2e-16);
    if (name == "frac") {
      const Result above = Argument();
      return Both(above, Argument(), Divide);
    }
    if (name == "binom") {
      const Result above = Argument();
      return Both(above, Argument(), Binomial);
    }
    if (name == "sqrt") {
      const Result degree = Peek().Symbol("[") ? Group("]") : FromRational(2);
      return Both(Argument(), degree, Root);
    }
    if (name == "lfloor" || name == "lceil") {
      const Result value = Sum();
      if (AtEnd() || !Peek().Command(name == "lfloor" ? "rfloor" : "rceil")) return Fail();
      ++at_;
      return value ? Apply(name == "lfloor" ? "floor" : "ceil", *value) : std::nullopt;
    }
    if (IsFunction(name)) return FunctionOf(name);
    if (IsAtomCommand(name)) return Variable("\\" + name);
    return Fail();
  }

  Result FunctionOf(std::string name) {
    Result base, power;
    bool has_base = false, has_power = false;
    if (name == "log" && Take("_")) {
      has_base = true;
      base = Argument();
      name = "ln";
    }
    if (Take("^")) {
      has_power = true;
      power = Exponent();
    }
    if (has_power && power && power->exact && *power->exact == -1 &&
        (name == "sin" || name == "cos" || name == "tan")) {
      name = "arc" + name;
      has_power = false;
    }
    const Result argument = FunctionArgument();
    Result value = argument ? Apply(name, *argument) : std::nullopt;
    if (has_base) value = Both(value, base ? Apply("ln", *base) : std::nullopt, Divide);
    return has_power ? Both(value, power, Power) : value;
  }

  // In brackets, or the product that follows up to the next function: sin 2x cos x.
  Result FunctionArgument() {
    if (Peek().Symbol("(") || Peek().Symbol("[") || Peek().Symbol("{")) return Base();
    const int sign = TakeSign();
    Result argument = Factor();
    while (BeginsFactor() && Peek().kind != TokenKind::kNumber &&
           !(Peek().kind == TokenKind::kCommand && IsFunction(Peek().text))) {
      argument = Both(argument, Factor(), Multiply);
    }
    return sign < 0 ? Both(FromRational(0), argument, Subtract) : argument;
  }

  std::span<const Token> tokens_;
  int sign_, point_;
  size_t at_ = 0;
  int depth_ = 0;
  int bars_ = 0;  // within |...|, where the next bar closes
  bool bad_syntax_ = false;
  bool has_variables_ = false;
};

const std::optional<Value>& At(const ExpressionValues& values, size_t point) {
  return values.points[values.points.size() == 1 ? 0 : point];
}

}  // namespace

std::optional<ExpressionValues> Evaluate(std::span<const Token> tokens, int sign) {
  ExpressionValues values;
  bool some = false;
  for (int point = 0; point < kNumPoints; ++point) {
    Evaluator evaluator(tokens, sign, point);
    values.points.push_back(evaluator.Run());
    if (evaluator.bad_syntax()) return std::nullopt;
    some = some || values.points.back().has_value();
    values.has_variables = evaluator.has_variables();
    if (!values.has_variables) break;
  }
  if (!some) return std::nullopt;
  return values;
}

bool SameValues(const ExpressionValues& a, const ExpressionValues& b) {
  const size_t points = std::max(a.points.size(), b.points.size());
  size_t same = 0;
  for (size_t point = 0; point < points; ++point) {
    const auto& x = At(a, point);
    const auto& y = At(b, point);
    if (x.has_value() != y.has_value()) return false;
    if (!x) continue;
    if (!Same(*x, *y)) return false;
    ++same;
  }
  return same >= std::min<size_t>(points, 2);
}

bool Proportional(const ExpressionValues& a, const ExpressionValues& b) {
  if (!a.has_variables || !b.has_variables) return false;
  std::optional<Value> ratio;
  int same = 0;
  for (size_t point = 0; point < kNumPoints; ++point) {
    const auto& x = At(a, point);
    const auto& y = At(b, point);
    if (x.has_value() != y.has_value()) return false;
    if (!x) continue;
    const std::optional<Value> quotient = Divide(*x, *y);
    if (!quotient || (quotient->exact && *quotient->exact == 0)) return false;
    if (ratio && !Same(*quotient, *ratio)) return false;
    ratio = quotient;
    ++same;
  }
  return same >= 3;
}

}  // namespace lockstep
