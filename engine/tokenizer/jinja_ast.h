// The syntax tree of a chat template.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_JINJA_AST_H_
#define LOCKSTEP_ENGINE_TOKENIZER_JINJA_AST_H_

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/jinja_value.h"

namespace lockstep::jinja {

enum class ExprKind {
  kConst,
  kName,
  kList,
  kTuple,
  kDict,       // children: key, value, key, value, ...
  kAttribute,  // children[0].name
  kItem,       // children[0][children[1]]
  kSlice,      // children[0][children[1]:children[2]:children[3]], absent ones null
  kCall,       // children[0](children[1], ..., named)
  kFilter,     // children[0] | name(children[1], ..., named)
  kTest,       // children[0] is name(children[1], ...)
  kNot,
  kNegative,
  kPositive,
  kBinary,   // name: + - * / // %
  kConcat,   // ~ of all children
  kCompare,  // children[0] ops[0] children[1] ops[1] children[2] ...
  kAnd,
  kOr,
  kConditional,  // children[1] if children[0] else children[2], which may be null
};

struct Expr {
  ExprKind kind = ExprKind::kConst;
  int line = 0;
  int depth = 1;  // of the tree below
  std::string name;
  Value value;
  std::vector<std::unique_ptr<Expr>> children;
  std::vector<std::pair<std::string, std::unique_ptr<Expr>>> named;
  std::vector<std::string> ops;
};

enum class StatementKind { kData, kPrint, kIf, kFor, kSet, kMacro, kBreak, kContinue };

struct Target {
  std::string name;
  std::string attribute;  // of a namespace: {% set name.attribute = ... %}
};

struct MacroStatement;
struct Statement {
  using Body = std::vector<Statement>;
  StatementKind kind = StatementKind::kData;
  int line = 0;
  std::string text;              // kData
  std::unique_ptr<Expr> expr;    // kPrint; kSet: null for a block; kFor: what it goes over
  std::unique_ptr<Expr> filter;  // kFor: ... if filter
  std::vector<std::pair<std::unique_ptr<Expr>, Body>> branches;  // kIf, in order
  std::vector<Target> targets;                                   // kSet, kFor
  Body body;                                                     // kFor, kSet as a block
  Body otherwise;                                                // kIf, kFor
  std::unique_ptr<MacroStatement> macro;                         // kMacro
};

struct MacroStatement {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<std::unique_ptr<Expr>> defaults;  // null: none
  Statement::Body body;
};

// What is outside of the subset is refused by name: 'line 3: filter "groupby" is not supported'.
absl::StatusOr<Statement::Body> ParseTemplate(std::string_view source);

// Of the built-in filters and tests.
bool KnownFilter(std::string_view name);
bool KnownTest(std::string_view name);

}  // namespace lockstep::jinja

#endif  // LOCKSTEP_ENGINE_TOKENIZER_JINJA_AST_H_
