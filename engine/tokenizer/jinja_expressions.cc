// Names and expressions of chat templates.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/jinja_run.h"

namespace lockstep::jinja {

Value Interpreter::Lookup(const std::string& name) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    if (scope->loop != nullptr && name == "loop") return Value::Of(scope->loop);
    if (const auto it = scope->variables.find(name); it != scope->variables.end()) return it->second;
  }
  static constexpr std::string_view kFunctions[] = {"range", "dict", "namespace", "raise_exception"};
  if (std::find(std::begin(kFunctions), std::end(kFunctions), name) != std::end(kFunctions) ||
      (name == "strftime_now" && now_.has_value())) {
    return MakeFunction(name);
  }
  if (name == "cycler" || name == "joiner" || name == "lipsum") {
    return Fail(absl::StrCat("function \"", name, "\" is not supported"));
  }
  return MakeUndefined(name);
}

Value Interpreter::MakeFunction(const std::string& name) {
  Callable callable;
  callable.name = name;
  return Value::Of(std::make_shared<const Callable>(std::move(callable)));
}

Value Interpreter::LoopAttribute(const Loop& loop, const std::string& name) {
  const auto length = static_cast<int64_t>(loop.items.size());
  if (name == "index") return Value::Of(loop.index0 + 1);
  if (name == "index0") return Value::Of(loop.index0);
  if (name == "revindex") return Value::Of(length - loop.index0);
  if (name == "revindex0") return Value::Of(length - loop.index0 - 1);
  if (name == "first") return Value::Of(loop.index0 == 0);
  if (name == "last") return Value::Of(loop.index0 + 1 == length);
  if (name == "length") return Value::Of(length);
  if (name == "depth" || name == "depth0") return Value::Of(int64_t{name == "depth"});  // of recursive loops
  if (name == "previtem") {
    return loop.index0 > 0 ? loop.items[static_cast<size_t>(loop.index0 - 1)] : MakeUndefined(name);
  }
  if (name == "nextitem") {
    return loop.index0 + 1 < length ? loop.items[static_cast<size_t>(loop.index0 + 1)] : MakeUndefined(name);
  }
  return Fail(absl::StrCat("loop.", Printable(name), " is not supported"));
}

Value Interpreter::Method(const Value& self, const std::string& name) {
  Callable callable;
  callable.name = name;
  callable.self = self;
  callable.method = true;
  if (!budget_.Charge(sizeof(Callable))) return Value();
  return Value::Of(std::make_shared<const Callable>(std::move(callable)));
}

Value Interpreter::FailUndefined(const Value& value) {
  const auto* name = std::get<Undefined>(value.data).name.get();
  return Fail(absl::StrCat("'", name == nullptr ? "value" : Printable(*name), "' is undefined"));
}

Value Interpreter::Attribute(const Value& container, const std::string& name) {
  if (container.IsUndefined()) return FailUndefined(container);
  if (container.Is<Loop*>()) return LoopAttribute(*std::get<Loop*>(container.data), name);
  if (container.Is<Namespace*>()) {
    for (const auto& [key, value] : std::get<Namespace*>(container.data)->items) {
      if (key == name) return value;
    }
    return MakeUndefined(name);
  }
  if (FindMethod(container, name) != nullptr) return Method(container, name);
  if (const Value* value = container.IsDict() ? container.dict().Find(name) : nullptr; value != nullptr) {
    return *value;
  }
  // A method of Python's that is not here must not look like an attribute that is absent.
  static constexpr std::string_view kOthers[] = {
      "append", "extend",    "insert",     "pop",      "update",   "setdefault", "clear",
      "copy",   "index",     "format",     "center",   "encode",   "zfill",      "ljust",
      "rjust",  "partition", "rpartition", "casefold", "swapcase", "sort",       "remove"};
  if ((container.IsText() || container.IsList() || container.IsDict()) &&
      std::find(std::begin(kOthers), std::end(kOthers), name) != std::end(kOthers)) {
    return Fail(absl::StrCat("method \"", name, "\" of a ", TypeName(container), " is not supported"));
  }
  return MakeUndefined(name);
}

Value Interpreter::Item(const Value& container, const Value& key) {
  if (container.IsUndefined()) return FailUndefined(container);
  Value value = GetItem(budget_, container, key);
  if (!value.IsUndefined() || !key.IsText() || failed()) return value;
  if (container.IsDict() && container.dict().Find(key.text()) != nullptr) return value;
  return Attribute(container, key.text());
}

Value Interpreter::Eval(const Expr& expr) {
  const Nesting nesting(this);
  budget_.line = expr.line;
  if (!budget_.Spend()) return Value();
  switch (expr.kind) {
    case ExprKind::kConst:
      return expr.value;
    case ExprKind::kName:
      return Lookup(expr.name);
    case ExprKind::kList:
    case ExprKind::kTuple:
      return MakeList(budget_, EvalAll(expr, 0), expr.kind == ExprKind::kTuple);
    case ExprKind::kDict:
      return EvalDict(expr);
    case ExprKind::kAttribute: {
      const Value container = EvalChild(expr, 0);
      return failed() ? Value() : Attribute(container, expr.name);
    }
    case ExprKind::kItem: {
      const Value container = EvalChild(expr, 0);
      const Value key = EvalChild(expr, 1);
      return failed() ? Value() : Item(container, key);
    }
    case ExprKind::kSlice:
      return EvalSlice(expr);
    case ExprKind::kCall:
      return EvalCall(expr);
    case ExprKind::kFilter: {
      const Value self = EvalChild(expr, 0);
      const Arguments arguments = EvalArguments(expr);
      return failed() ? Value() : ApplyFilter(budget_, expr.name, self, arguments);
    }
    case ExprKind::kTest: {
      const Value self = EvalChild(expr, 0);
      const Arguments arguments = EvalArguments(expr);
      if (!arguments.named.empty()) return Fail(absl::StrCat("test \"", expr.name, "\" takes no named argument"));
      return Value::Of(!failed() && ApplyTest(budget_, expr.name, self, arguments.positional));
    }
    default:
      return EvalOperator(expr);
  }
}

Value Interpreter::EvalOperator(const Expr& expr) {
  switch (expr.kind) {
    case ExprKind::kNot:
      return Value::Of(!Truthy(EvalChild(expr, 0)));
    case ExprKind::kNegative:
    case ExprKind::kPositive: {
      const Value value = EvalChild(expr, 0);
      const char* op = expr.kind == ExprKind::kNegative ? "-" : "+";
      if (value.Is<double>()) return Value::Of(op[0] == '-' ? -value.number() : value.number());
      return failed() ? Value() : Arithmetic(budget_, op, Value::Of(int64_t{0}), value);
    }
    case ExprKind::kBinary: {
      const Value left = EvalChild(expr, 0);
      const Value right = EvalChild(expr, 1);
      return failed() ? Value() : Arithmetic(budget_, expr.name, left, right);
    }
    case ExprKind::kConcat: {
      std::string out;
      for (size_t i = 0; i < expr.children.size() && !failed(); ++i) {
        const std::string part = ToString(budget_, EvalChild(expr, i));
        if (budget_.Charge(part.size())) out += part;
      }
      return MakeText(budget_, std::move(out));
    }
    case ExprKind::kCompare:
      return EvalCompare(expr);
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      Value left = EvalChild(expr, 0);
      return Truthy(left) == (expr.kind == ExprKind::kOr) ? left : EvalChild(expr, 1);
    }
    default:
      if (Truthy(EvalChild(expr, 0))) return EvalChild(expr, 1);
      return expr.children[2] != nullptr ? EvalChild(expr, 2) : Value();
  }
}

std::vector<Value> Interpreter::EvalAll(const Expr& expr, size_t first) {
  std::vector<Value> values;
  for (size_t i = first; i < expr.children.size() && !failed(); ++i) values.push_back(EvalChild(expr, i));
  return values;
}

Arguments Interpreter::EvalArguments(const Expr& expr) {
  Arguments arguments;
  arguments.positional = EvalAll(expr, 1);
  for (const auto& [name, value] : expr.named) {
    if (failed()) break;
    arguments.named.emplace_back(name, Eval(*value));
  }
  return arguments;
}

Value Interpreter::EvalDict(const Expr& expr) {
  std::vector<std::pair<Value, Value>> items;
  for (size_t i = 0; i + 1 < expr.children.size() && !failed(); i += 2) {
    Value key = EvalChild(expr, i);
    items.emplace_back(std::move(key), EvalChild(expr, i + 1));
  }
  return failed() ? Value() : MakeDict(budget_, std::move(items));
}

Value Interpreter::EvalSlice(const Expr& expr) {
  const Value container = EvalChild(expr, 0);
  Value parts[3];
  const Value* given[3] = {};
  for (size_t i = 0; i < 3; ++i) {
    if (expr.children[i + 1] == nullptr) continue;
    parts[i] = EvalChild(expr, i + 1);
    given[i] = &parts[i];
  }
  if (failed()) return Value();
  if (container.IsUndefined()) return FailUndefined(container);
  return Slice(budget_, container, given[0], given[1], given[2]);
}

Value Interpreter::EvalCompare(const Expr& expr) {
  Value left = EvalChild(expr, 0);
  for (size_t i = 0; i < expr.ops.size(); ++i) {
    Value right = EvalChild(expr, i + 1);
    if (failed()) return Value();
    if (!Holds(expr.ops[i], left, right)) return Value::Of(false);
    left = std::move(right);
  }
  return Value::Of(true);
}

bool Interpreter::Holds(const std::string& op, const Value& a, const Value& b) {
  if (op == "==") return Equal(budget_, a, b);
  if (op == "!=") return !Equal(budget_, a, b);
  if (op == "in") return Contains(budget_, b, a);
  if (op == "not in") return !Contains(budget_, b, a);
  const int order = Compare(budget_, a, b, op.c_str());
  return op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
}

}  // namespace lockstep::jinja
