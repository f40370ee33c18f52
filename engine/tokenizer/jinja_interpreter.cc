#include "engine/tokenizer/jinja_interpreter.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/jinja_lexer.h"
#include "engine/tokenizer/jinja_run.h"

namespace lockstep::jinja {
namespace {

// Expressions, bodies and macros in one another while running.
constexpr int kMaxRunDepth = 400;

}  // namespace

Interpreter::Nesting::Nesting(Interpreter* self) : self_(self) {
  if (++self_->depth_ > kMaxRunDepth) self_->budget_.Fail(absl::StrCat("runs nested deeper than ", kMaxRunDepth));
}

std::string Interpreter::Run(const Statement::Body& body, const std::vector<std::pair<std::string, Value>>& variables) {
  for (const auto& [name, value] : variables) globals_.variables[name] = value;
  scope_ = &globals_;
  RunBody(body);
  return std::move(*out_);
}

Value Interpreter::Fail(std::string message) {
  budget_.Fail(std::move(message));
  return Value();
}

void Interpreter::Print(std::string_view text) {
  if (out_->size() + text.size() > limits_.output_bytes) {
    budget_.Fail(absl::StrCat("writes more than ", limits_.output_bytes, " bytes"));
  } else {
    out_->append(text);
  }
}

Flow Interpreter::RunBody(const Statement::Body& body) {
  const Nesting nesting(this);
  for (const Statement& statement : body) {
    if (!budget_.Spend()) break;
    budget_.line = statement.line;
    Flow flow = Flow::kNext;
    switch (statement.kind) {
      case StatementKind::kData:
        Print(statement.text);
        break;
      case StatementKind::kPrint: {
        const Value value = Eval(*statement.expr);
        if (!failed()) Print(ToString(budget_, value));
        break;
      }
      case StatementKind::kIf:
        flow = RunIf(statement);
        break;
      case StatementKind::kFor:
        RunFor(statement);
        break;
      case StatementKind::kSet:
        RunSet(statement);
        break;
      case StatementKind::kMacro: {
        Callable callable;
        callable.macro = statement.macro.get();
        callable.name = statement.macro->name;
        scope_->variables[callable.name] = Value::Of(std::make_shared<const Callable>(callable));
        break;
      }
      case StatementKind::kBreak:
        return Flow::kBreak;
      case StatementKind::kContinue:
        return Flow::kContinue;
    }
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Flow Interpreter::RunIf(const Statement& statement) {
  for (const auto& [condition, body] : statement.branches) {
    const Value value = Eval(*condition);
    if (failed()) return Flow::kNext;
    if (Truthy(value)) return RunBody(body);
  }
  return RunBody(statement.otherwise);
}

void Interpreter::RunFor(const Statement& statement) {
  const Value over = Eval(*statement.expr);
  if (failed()) return;
  std::vector<Value> items = Iterate(budget_, over);
  if (statement.filter != nullptr) {
    std::vector<Value> kept;
    for (Value& item : items) {
      Scope scope;
      scope.parent = scope_;
      Bind(statement.targets, item, &scope);
      scope_ = &scope;
      const bool keep = !failed() && Truthy(Eval(*statement.filter));
      scope_ = scope.parent;
      if (failed()) return;
      if (keep) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (failed()) return;
  if (items.empty()) {
    RunBody(statement.otherwise);
    return;
  }
  loops_.push_back({std::move(items), 0});  // a value may keep the loop, so it lives as long as the run
  Loop* const loop = &loops_.back();
  for (size_t i = 0; i < loop->items.size() && budget_.Spend(); ++i) {
    Scope scope;
    scope.parent = scope_;
    scope.loop = loop;
    loop->index0 = static_cast<int64_t>(i);
    Bind(statement.targets, loop->items[i], &scope);
    scope_ = &scope;
    const Flow flow = failed() ? Flow::kBreak : RunBody(statement.body);
    scope_ = scope.parent;
    if (flow == Flow::kBreak) break;
  }
}

void Interpreter::Bind(const std::vector<Target>& targets, const Value& value, Scope* scope) {
  if (targets.size() == 1) {
    Assign(targets[0], value, scope);
    return;
  }
  const std::vector<Value> items = Iterate(budget_, value);
  if (failed()) return;
  if (items.size() != targets.size()) {
    budget_.Fail(absl::StrCat("unpacks ", items.size(), " values into ", targets.size(), " names"));
    return;
  }
  for (size_t i = 0; i < items.size(); ++i) Assign(targets[i], items[i], scope);
}

void Interpreter::Assign(const Target& target, const Value& value, Scope* scope) {
  if (target.attribute.empty()) {
    scope->variables[target.name] = value;
    return;
  }
  const Value space = Lookup(target.name);
  if (!space.Is<Namespace*>()) {
    budget_.Fail(absl::StrCat("sets an attribute of '", Printable(target.name), "', which is no namespace"));
    return;
  }
  auto& items = std::get<Namespace*>(space.data)->items;
  const auto at =
      std::find_if(items.begin(), items.end(), [&](const auto& item) { return item.first == target.attribute; });
  if (at != items.end()) {
    at->second = value;
  } else {
    items.emplace_back(target.attribute, value);
  }
}

void Interpreter::RunSet(const Statement& statement) {
  if (statement.expr != nullptr) {
    const Value value = Eval(*statement.expr);
    if (!failed()) Bind(statement.targets, value, scope_);
    return;
  }
  std::string* const outer = out_;
  std::string out;
  Scope scope;
  scope.parent = scope_;
  scope_ = &scope;
  out_ = &out;
  RunBody(statement.body);
  out_ = outer;
  scope_ = scope.parent;
  const Value value = MakeText(budget_, std::move(out));
  if (!failed()) Bind(statement.targets, value, scope_);
}

absl::StatusOr<std::string> RunTemplate(const Statement::Body& body,
                                        const std::vector<std::pair<std::string, Value>>& variables,
                                        const std::optional<std::tm>& now, const RunLimits& limits, Budget* budget) {
  Interpreter interpreter(budget, limits, now);
  std::string out = interpreter.Run(body, variables);
  if (budget->failed()) return TemplateError(budget->failed_line(), budget->message());
  return out;
}

}  // namespace lockstep::jinja
