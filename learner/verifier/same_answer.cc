// When two parsed answers are the same.
#include <algorithm>

#include "learner/verifier/answer.h"

namespace lockstep {
namespace {

using Kind = Answer::Kind;

// Longer lists are compared in order: matching every part with every other is quadratic.
constexpr size_t kMaxUnordered = 128;

bool SameInOrder(const std::vector<Answer>& a, const std::vector<Answer>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), SameAnswers);
}

bool SameInAnyOrder(const std::vector<Answer>& a, const std::vector<Answer>& b) {
  if (a.size() != b.size()) return false;
  if (a.size() > kMaxUnordered) return SameInOrder(a, b);
  std::vector<bool> used(b.size());
  for (const Answer& part : a) {
    size_t at = 0;
    while (at < b.size() && (used[at] || !SameAnswers(part, b[at]))) ++at;
    if (at == b.size()) return false;
    used[at] = true;
  }
  return true;
}

// A percent sign may be left out (84% is 84), or stand for hundredths (20% is 0.2).
bool SamePercent(const ExpressionValues& with_sign, const ExpressionValues& without) {
  if (SameValues(with_sign, without)) return true;
  if (with_sign.has_variables || without.has_variables) return false;
  const auto hundredths = Divide(*with_sign.points[0], *FromRational(100));
  return hundredths && Same(*hundredths, *without.points[0]);
}

bool SameEquation(const Answer& a, const Answer& b) {
  const Answer &left_a = a.parts[0], &right_a = a.parts[1], &left_b = b.parts[0], &right_b = b.parts[1];
  if (left_a.spelling == left_b.spelling && SameAnswers(right_a, right_b)) return true;
  if (left_a.kind != Kind::kValue || right_a.kind != Kind::kValue || left_b.kind != Kind::kValue ||
      right_b.kind != Kind::kValue) {
    return false;
  }
  const auto difference = [](const ExpressionValues& left, const ExpressionValues& right) {
    ExpressionValues out;
    out.has_variables = left.has_variables || right.has_variables;
    for (size_t point = 0; point < (out.has_variables ? kNumPoints : 1); ++point) {
      const auto& x = left.points[left.points.size() == 1 ? 0 : point];
      const auto& y = right.points[right.points.size() == 1 ? 0 : point];
      out.points.push_back(x && y ? Subtract(*x, *y) : std::nullopt);
    }
    return out;
  };
  return Proportional(difference(left_a.values, right_a.values), difference(left_b.values, right_b.values));
}

}  // namespace

bool SameAnswers(const Answer& a, const Answer& b) {
  const bool both_units = !a.unit.empty() && !b.unit.empty();
  if (both_units && a.unit != b.unit) return false;
  if (a.kind == Kind::kEquation && b.kind != Kind::kEquation) {
    return a.parts[0].is_name && SameAnswers(a.parts[1], b);  // "x = 5" answers 5
  }
  if (b.kind == Kind::kEquation && a.kind != Kind::kEquation) return SameAnswers(b, a);
  if (a.kind == Kind::kList && b.kind != Kind::kList) return a.parts.size() == 1 && SameAnswers(a.parts[0], b);
  if (b.kind == Kind::kList && a.kind != Kind::kList) return SameAnswers(b, a);
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kText:
    case Kind::kInfinity:
      return !a.spelling.empty() && a.spelling == b.spelling;
    case Kind::kValue:
      if (a.percent == b.percent) return SameValues(a.values, b.values);
      return a.percent ? SamePercent(a.values, b.values) : SamePercent(b.values, a.values);
    case Kind::kTuple:
      return a.open == b.open && a.close == b.close && SameInOrder(a.parts, b.parts);
    case Kind::kRatio:
      return SameInOrder(a.parts, b.parts);
    case Kind::kList:
    case Kind::kUnion:
      return SameInAnyOrder(a.parts, b.parts);
    case Kind::kMatrix:
      return a.columns == b.columns && SameInOrder(a.parts, b.parts);
    case Kind::kEquation:
      return SameEquation(a, b);
  }
  return false;
}

}  // namespace lockstep
