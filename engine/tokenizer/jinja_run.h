// The interpreter of chat templates, in three files: jinja_interpreter.cc runs statements, jinja_expressions.cc
// evaluates expressions, jinja_calls.cc calls functions and macros. For these files only; RunTemplate is the way in.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_JINJA_RUN_H_
#define LOCKSTEP_ENGINE_TOKENIZER_JINJA_RUN_H_

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/tokenizer/jinja_builtins.h"
#include "engine/tokenizer/jinja_interpreter.h"

namespace lockstep::jinja {

// What `loop` tells inside of a for loop.
struct Loop {
  std::vector<Value> items;
  int64_t index0 = 0;
};

struct Scope {
  std::map<std::string, Value, std::less<>> variables;
  Scope* parent = nullptr;
  Loop* loop = nullptr;
};

enum class Flow { kNext, kBreak, kContinue };

// After the first failure, which the budget keeps, every function returns at once.
class Interpreter {
 public:
  Interpreter(Budget* budget, const RunLimits& limits, const std::optional<std::tm>& now)
      : budget_(*budget), limits_(limits), now_(now) {}

  std::string Run(const Statement::Body& body, const std::vector<std::pair<std::string, Value>>& variables);

 private:
  bool failed() const { return budget_.failed(); }
  Value Fail(std::string message);

  // Counts the depth of what runs in what.
  class Nesting {
   public:
    explicit Nesting(Interpreter* self);
    ~Nesting() { --self_->depth_; }

   private:
    Interpreter* self_;
  };

  // ---- names
  Value Lookup(const std::string& name);
  Value MakeFunction(const std::string& name);
  Value LoopAttribute(const Loop& loop, const std::string& name);
  Value Method(const Value& self, const std::string& name);
  Value FailUndefined(const Value& value);

  // container.name: a method before an item, as Jinja2 looks.
  Value Attribute(const Value& container, const std::string& name);
  Value Item(const Value& container, const Value& key);

  // ---- expressions
  Value Eval(const Expr& expr);
  Value EvalOperator(const Expr& expr);
  Value EvalChild(const Expr& expr, size_t index) { return failed() ? Value() : Eval(*expr.children[index]); }
  std::vector<Value> EvalAll(const Expr& expr, size_t first);
  Arguments EvalArguments(const Expr& expr);
  Value EvalDict(const Expr& expr);
  Value EvalSlice(const Expr& expr);
  Value EvalCompare(const Expr& expr);
  bool Holds(const std::string& op, const Value& a, const Value& b);

  // ---- calls
  Value EvalCall(const Expr& expr);
  Value Cycle(const Expr& expr);
  Value CallFunction(const std::string& name, const Arguments& arguments);
  Value Range(const Arguments& arguments);
  Value FormatTime(const Arguments& arguments);
  Value CallMacro(const MacroStatement& macro, const Arguments& arguments);

  // ---- statements
  void Print(std::string_view text);
  Flow RunBody(const Statement::Body& body);
  Flow RunIf(const Statement& statement);
  void RunFor(const Statement& statement);

  // Names take a value, or each its item of one.
  void Bind(const std::vector<Target>& targets, const Value& value, Scope* scope);
  void Assign(const Target& target, const Value& value, Scope* scope);
  void RunSet(const Statement& statement);

  Budget& budget_;
  const RunLimits& limits_;
  const std::optional<std::tm>& now_;
  std::deque<Namespace> namespaces_;
  std::deque<Loop> loops_;
  Scope globals_;
  Scope* scope_ = nullptr;
  std::string output_;
  std::string* out_ = &output_;
  int depth_ = 0;
};

}  // namespace lockstep::jinja

#endif  // LOCKSTEP_ENGINE_TOKENIZER_JINJA_RUN_H_
