// The structure of an answer: a value, a list, a point or interval, a union, a matrix, an equation, or words.
#ifndef LOCKSTEP_LEARNER_VERIFIER_ANSWER_H_
#define LOCKSTEP_LEARNER_VERIFIER_ANSWER_H_

#include <span>
#include <string>
#include <vector>

#include "learner/verifier/expression.h"
#include "learner/verifier/latex_lexer.h"

namespace lockstep {

struct Answer {
  enum class Kind {
    kText,      // compared by `spelling` alone
    kValue,     // values
    kInfinity,  // spelling has its sign
    kTuple,     // parts in order within open and close: points and intervals
    kList,      // parts in any order: "1, 2", "\{1, 2\}", "\pm 3", "3 \text{ or } 4"
    kUnion,     // parts in any order, joined by \cup
    kMatrix,    // parts by rows
    kEquation,  // parts: left and right side
    kRatio,     // parts joined by ":", times too; compared part by part
  };
  Kind kind = Kind::kText;
  std::string spelling;  // all tokens, one spelling of trivial differences
  ExpressionValues values;
  std::vector<Answer> parts;
  char open = 0, close = 0;
  size_t columns = 0;
  std::string unit;      // of units.h; empty: none, or one that is not known
  bool percent = false;  // written with a percent sign
  bool is_name = false;  // a variable or f(x), for the left side of an equation
};

// Never fails: what has no structure is text.
Answer ParseAnswer(std::span<const Token> tokens);

bool SameAnswers(const Answer& a, const Answer& b);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_VERIFIER_ANSWER_H_
