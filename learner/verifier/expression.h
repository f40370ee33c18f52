// Values of a mathematical expression, at several fixed points where it has variables: two expressions that agree in
// all of them are the same for grading.
#ifndef LOCKSTEP_LEARNER_VERIFIER_EXPRESSION_H_
#define LOCKSTEP_LEARNER_VERIFIER_EXPRESSION_H_

#include <optional>
#include <span>
#include <vector>

#include "learner/verifier/latex_lexer.h"
#include "learner/verifier/value.h"

namespace lockstep {

inline constexpr int kNumPoints = 5;

struct ExpressionValues {
  bool has_variables = false;
  // One without variables, else kNumPoints; nothing at a point where the expression has no finite value.
  std::vector<std::optional<Value>> points;
};

// Letters are variables, e, i and pi constants; numbers, + - * / ^ !, implicit products, mixed numbers (1\frac12),
// \frac, \sqrt[n], \binom, |x|, floor and ceiling, and the functions of value.h. `sign` is that of \pm (of \mp: -sign).
// Nothing where the tokens are no such expression, nest deeper than 48, or have no value anywhere. Linear time.
std::optional<ExpressionValues> Evaluate(std::span<const Token> tokens, int sign);

bool SameValues(const ExpressionValues& a, const ExpressionValues& b);
// Whether a = 0 and b = 0 are one equation: a / b is the same constant at all points.
bool Proportional(const ExpressionValues& a, const ExpressionValues& b);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_VERIFIER_EXPRESSION_H_
