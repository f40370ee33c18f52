#include "learner/verifier/answer.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "learner/verifier/units.h"

namespace lockstep {
namespace {

using Tokens = std::span<const Token>;

constexpr int kMaxDepth = 12;

std::string Spelling(Tokens tokens) {
  std::string out;
  for (size_t at = 0; at < tokens.size(); ++at) {
    if (tokens[at].Symbol("{") && at + 2 < tokens.size() && tokens[at + 2].Symbol("}")) {
      out += tokens[++at].text;  // {5} is 5
      ++at;
      continue;
    }
    if (tokens[at].kind == TokenKind::kCommand) out += "\\";
    for (const char c : tokens[at].text) {
      if (c != ' ') out += c;
    }
  }
  return out;
}

int Nesting(const Token& token) {
  if (token.kind == TokenKind::kCommand) {
    if (token.text.starts_with("begin:") || token.text == "lfloor" || token.text == "lceil") return 1;
    return token.text.starts_with("end:") || token.text == "rfloor" || token.text == "rceil" ? -1 : 0;
  }
  if (token.kind != TokenKind::kSymbol) return 0;
  const std::string& s = token.text;
  if (s == "(" || s == "[" || s == "{" || s == "\\{") return 1;
  return s == ")" || s == "]" || s == "}" || s == "\\}" ? -1 : 0;
}

// The parts between tokens that `separates` and that stand in no brackets.
std::vector<Tokens> Split(Tokens tokens, const std::function<bool(const Token&)>& separates) {
  std::vector<Tokens> parts;
  int depth = 0;
  size_t begin = 0;
  for (size_t at = 0; at < tokens.size(); ++at) {
    depth += Nesting(tokens[at]);
    if (depth == 0 && separates(tokens[at])) {
      parts.push_back(tokens.subspan(begin, at - begin));
      begin = at + 1;
    }
  }
  parts.push_back(tokens.subspan(begin));
  return parts;
}

// Whether the bracket that opens first closes last.
bool IsEnclosed(Tokens tokens) {
  if (tokens.size() < 2 || Nesting(tokens.front()) != 1) return false;
  int depth = 0;
  for (size_t at = 0; at < tokens.size(); ++at) {
    depth += Nesting(tokens[at]);
    if (depth == 0) return at + 1 == tokens.size();
  }
  return false;
}

bool Any(Tokens tokens, const std::function<bool(const Token&)>& condition) {
  return std::any_of(tokens.begin(), tokens.end(), condition);
}
bool IsComma(const Token& t) { return t.Symbol(",") || t.Symbol(";"); }
bool IsListSeparator(const Token& t) {
  return IsComma(t) || t.Is(TokenKind::kText, "or") || t.Is(TokenKind::kText, "and");
}
bool IsRelation(const Token& t) {
  return t.Symbol("=") || t.Symbol("<") || t.Symbol(">") || t.Command("le") || t.Command("ge");
}

// A variable, x_1, \theta, f(x), f(2), or words, as they stand left of "=".
bool IsName(Tokens t) {
  if (t.empty()) return false;
  if (t.size() == 1)
    return t[0].kind == TokenKind::kLetter || t[0].kind == TokenKind::kText || t[0].kind == TokenKind::kCommand;
  if (t[0].kind == TokenKind::kText) return true;
  if (t[0].kind != TokenKind::kLetter) return false;
  if (t[1].Symbol("_")) return t.size() == 3 || (t[2].Symbol("{") && IsEnclosed(t.subspan(2)));
  return t[1].Symbol("(") && t.size() == 4 && (t[2].kind == TokenKind::kLetter || t[2].kind == TokenKind::kNumber) &&
         t[3].Symbol(")");
}

Answer Parse(Tokens tokens, int depth);

Answer Group(Answer::Kind kind, const std::vector<Tokens>& parts, int depth) {
  Answer answer;
  answer.kind = kind;
  for (const Tokens part : parts) {
    Answer one = Parse(part, depth);
    const bool nested_list = kind == Answer::Kind::kList && one.kind == Answer::Kind::kList;
    if (nested_list) {
      std::move(one.parts.begin(), one.parts.end(), std::back_inserter(answer.parts));
    } else {
      answer.parts.push_back(std::move(one));
    }
  }
  return answer;
}

// Takes punctuation and units off both ends; notes the unit.
Tokens StripUnits(Tokens tokens, Answer* answer) {
  const bool has_number = Any(tokens, [](const Token& t) { return t.kind == TokenKind::kNumber || t.Command("pi"); });
  const bool has_function =
      Any(tokens, [](const Token& t) { return t.kind == TokenKind::kCommand && IsFunction(t.text); });
  if (!has_number) return tokens;
  const auto note = [&](const std::string& words) {
    const std::string_view unit = KnownUnit(words);
    if (unit == "%") answer->percent = true;
    if (!unit.empty()) answer->unit = unit;
  };
  while (tokens.size() > 1 && tokens.front().Is(TokenKind::kText, "dollar")) {
    note("dollar");
    tokens = tokens.subspan(1);
  }
  while (tokens.size() > 1) {
    size_t end = tokens.size();
    // The power of a unit: inches^2, inches^{2}.
    if (end > 3 && tokens[end - 2].Symbol("^") && tokens[end - 3].kind == TokenKind::kText) end -= 2;
    if (end > 5 && tokens[end - 1].Symbol("}") && tokens[end - 3].Symbol("{") && tokens[end - 4].Symbol("^") &&
        tokens[end - 5].kind == TokenKind::kText) {
      end -= 4;
    }
    const Token& last = tokens[end - 1];
    if (last.kind != TokenKind::kText || last.text == "pm" || last.text == "am") break;
    if (last.text == "degree" && has_function) break;
    if (tokens.front().kind == TokenKind::kText) break;  // "October 30 th" and the like are words
    note(last.text);
    tokens = tokens.first(end - 1);
  }
  return tokens;
}

std::optional<Answer> ParseMatrix(Tokens tokens, int depth) {
  Tokens inner = tokens;
  if (inner.size() > 4 && IsEnclosed(inner) && inner[1].Command("begin:array"))
    inner = inner.subspan(1, inner.size() - 2);
  if (inner.size() < 3 || !IsEnclosed(inner) || !inner.front().text.starts_with("begin:")) return std::nullopt;
  const std::string name = inner.front().text.substr(6);
  if (name != "pmatrix" && name != "bmatrix" && name != "matrix" && name != "array" && name != "smallmatrix") {
    return std::nullopt;
  }
  Answer matrix;
  matrix.kind = Answer::Kind::kMatrix;
  std::vector<Tokens> rows = Split(inner.subspan(1, inner.size() - 2), [](const Token& t) { return t.Symbol("\\\\"); });
  if (rows.size() > 1 && rows.back().empty()) rows.pop_back();
  for (const Tokens row : rows) {
    const std::vector<Tokens> cells = Split(row, [](const Token& t) { return t.Symbol("&"); });
    if (matrix.columns != 0 && matrix.columns != cells.size()) return std::nullopt;
    matrix.columns = cells.size();
    for (const Tokens cell : cells) matrix.parts.push_back(Parse(cell, depth));
  }
  return matrix;
}

Answer Infinity(bool negative) {
  Answer answer;
  answer.kind = Answer::Kind::kInfinity;
  answer.spelling = negative ? "-" : "+";
  return answer;
}

Answer Interval(char open, Answer low, Answer high, char close) {
  Answer answer;
  answer.kind = Answer::Kind::kTuple;
  answer.open = open;
  answer.close = close;
  answer.parts.push_back(std::move(low));
  answer.parts.push_back(std::move(high));
  return answer;
}

// x < 3, -1 \le x < 2: the interval. Nothing for other inequalities.
std::optional<Answer> ParseInequality(Tokens tokens, int depth) {
  const std::vector<Tokens> sides = Split(tokens, IsRelation);
  std::vector<std::string> relations;
  int nesting = 0;
  for (const Token& token : tokens) {
    nesting += Nesting(token);
    if (nesting == 0 && IsRelation(token)) relations.push_back(token.text);
  }
  if (sides.size() < 2 || sides.size() > 3 || Any(tokens, [](const Token& t) { return t.Symbol("="); }))
    return std::nullopt;
  std::vector<bool> up, strict;
  for (const std::string& relation : relations) {
    up.push_back(relation == "<" || relation == "le");
    strict.push_back(relation == "<" || relation == ">");
  }
  const auto is_variable = [](Tokens t) { return t.size() == 1 && t[0].kind == TokenKind::kLetter; };
  if (sides.size() == 2) {
    const bool left = is_variable(sides[0]);
    if (left == is_variable(sides[1])) return std::nullopt;
    Answer bound = Parse(sides[left ? 1 : 0], depth);
    if (bound.kind != Answer::Kind::kValue || bound.values.has_variables) return std::nullopt;
    const bool below = up[0] == left;  // the variable is below the bound
    if (below) return Interval('(', Infinity(true), std::move(bound), strict[0] ? ')' : ']');
    return Interval(strict[0] ? '(' : '[', std::move(bound), Infinity(false), ')');
  }
  if (!is_variable(sides[1]) || up[0] != up[1]) return std::nullopt;
  Answer low = Parse(sides[up[0] ? 0 : 2], depth), high = Parse(sides[up[0] ? 2 : 0], depth);
  const bool low_strict = strict[up[0] ? 0 : 1], high_strict = strict[up[0] ? 1 : 0];
  return Interval(low_strict ? '(' : '[', std::move(low), std::move(high), high_strict ? ')' : ']');
}

std::optional<Answer> ParseEquation(Tokens tokens, int depth) {
  const std::vector<Tokens> sides = Split(tokens, [](const Token& t) { return t.Symbol("="); });
  if (sides.size() < 2 || sides.front().empty() || sides.back().empty()) return std::nullopt;
  Answer answer;
  answer.kind = Answer::Kind::kEquation;
  Answer left = Parse(sides.front(), depth);
  left.is_name = IsName(sides.front());
  if (sides.size() > 2 && !left.is_name) return std::nullopt;  // of "x = 2 + 3 = 5" the last side counts
  answer.parts.push_back(std::move(left));
  answer.parts.push_back(Parse(sides.back(), depth));
  return answer;
}

// Brackets around a list: points, intervals, sets.
std::optional<Answer> ParseBrackets(Tokens tokens, int depth) {
  if (!IsEnclosed(tokens) || tokens.front().kind != TokenKind::kSymbol) return std::nullopt;
  const std::string& open = tokens.front().text;
  const std::string& close = tokens.back().text;
  const Tokens inner = tokens.subspan(1, tokens.size() - 2);
  if (inner.empty()) return std::nullopt;
  if (open == "{" && close == "}") return Parse(inner, depth);
  const std::vector<Tokens> parts = Split(inner, IsComma);
  if (open == "\\{" && close == "\\}") return Group(Answer::Kind::kList, parts, depth);
  if (parts.size() < 2 || open.size() != 1 || close.size() != 1 || open == "{" || close == "}") return std::nullopt;
  Answer answer = Group(Answer::Kind::kTuple, parts, depth);
  answer.open = open[0];
  answer.close = close[0];
  return answer;
}

std::optional<Answer> ParseValue(Tokens tokens) {
  if (tokens.empty()) return std::nullopt;
  const size_t sign = tokens.front().Symbol("-") || tokens.front().Symbol("+");
  if (tokens.size() == sign + 1 && tokens.back().Command("infty")) return Infinity(tokens.front().Symbol("-"));
  Answer answer;
  answer.kind = Answer::Kind::kValue;
  auto plus = Evaluate(tokens, 1);
  if (!plus) return std::nullopt;
  answer.values = *std::move(plus);
  if (!Any(tokens, [](const Token& t) { return t.Command("pm") || t.Command("mp"); })) return answer;
  auto minus = Evaluate(tokens, -1);
  if (!minus) return std::nullopt;
  Answer other = answer;
  other.values = *std::move(minus);
  Answer both;
  both.kind = Answer::Kind::kList;
  both.parts = {std::move(answer), std::move(other)};
  return both;
}

std::optional<Answer> ParseStructure(Tokens tokens, int depth) {
  if (Any(tokens, IsListSeparator)) {
    const std::vector<Tokens> parts = Split(tokens, IsListSeparator);
    // "a, b, and c": the comma before the word makes an empty part.
    std::vector<Tokens> filled;
    std::copy_if(parts.begin(), parts.end(), std::back_inserter(filled), [](Tokens t) { return !t.empty(); });
    if (parts.size() > 1 && !filled.empty()) return Group(Answer::Kind::kList, filled, depth);
  }
  if (tokens.size() > 2 && tokens[1].Command("in") && IsName(tokens.first(1))) return Parse(tokens.subspan(2), depth);
  if (Any(tokens, IsRelation)) {
    if (auto interval = ParseInequality(tokens, depth)) return interval;
    return ParseEquation(tokens, depth);
  }
  const auto is_cup = [](const Token& t) { return t.Command("cup"); };
  if (Any(tokens, is_cup)) return Group(Answer::Kind::kUnion, Split(tokens, is_cup), depth);
  if (auto matrix = ParseMatrix(tokens, depth)) return matrix;
  if (auto brackets = ParseBrackets(tokens, depth)) return brackets;
  const auto is_colon = [](const Token& t) { return t.Symbol(":"); };
  if (Any(tokens, is_colon)) return Group(Answer::Kind::kRatio, Split(tokens, is_colon), depth);
  return ParseValue(tokens);
}

// Takes off what has no meaning around an answer: the end of a sentence, and braces.
Tokens StripOutside(Tokens tokens) {
  for (int braces = 0; !tokens.empty();) {
    const Token& last = tokens.back();
    if (last.Symbol(".") || last.Symbol(",") || last.Symbol(";")) {
      tokens = tokens.first(tokens.size() - 1);
    } else if (last.Symbol("}") && tokens.front().Symbol("{") && ++braces <= kMaxDepth && IsEnclosed(tokens)) {
      tokens = tokens.subspan(1, tokens.size() - 2);
    } else {
      break;
    }
  }
  return tokens;
}

Answer Parse(Tokens tokens, int depth) {
  tokens = StripOutside(tokens);
  Answer outer;
  const Tokens bare = StripUnits(tokens, &outer);
  Answer answer;
  if (depth < kMaxDepth && !bare.empty()) {
    if (auto structure = ParseStructure(bare, depth + 1)) answer = *std::move(structure);
  }
  if (answer.unit.empty()) answer.unit = outer.unit;
  answer.percent = answer.percent || outer.percent;
  if (answer.kind != Answer::Kind::kInfinity)
    answer.spelling = Spelling(answer.kind == Answer::Kind::kText ? tokens : bare);
  return answer;
}

}  // namespace

Answer ParseAnswer(std::span<const Token> tokens) { return Parse(tokens, 0); }

}  // namespace lockstep
