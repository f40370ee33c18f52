#include "engine/tokenizer/jinja_interpreter.h"

#include <algorithm>
#include <deque>
#include <map>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/jinja_builtins.h"
#include "engine/tokenizer/jinja_lexer.h"

namespace lockstep::jinja {

// What `loop` tells inside of a for loop.
struct Loop {
  std::vector<Value> items;
  int64_t index0 = 0;
};

namespace {

// Expressions, bodies and macros in one another while running.
constexpr int kMaxRunDepth = 400;
constexpr int64_t kMaxRange = 100'000;  // Jinja2's sandbox has the same

struct Scope {
  std::map<std::string, Value, std::less<>> variables;
  Scope* parent = nullptr;
  Loop* loop = nullptr;
};

enum class Flow { kNext, kBreak, kContinue };

class Interpreter {
 public:
  Interpreter(Budget* budget, const RunLimits& limits, const std::optional<std::tm>& now)
      : budget_(*budget), limits_(limits), now_(now) {}

  std::string Run(const Statement::Body& body, const std::vector<std::pair<std::string, Value>>& variables) {
    for (const auto& [name, value] : variables) globals_.variables[name] = value;
    scope_ = &globals_;
    RunBody(body);
    return std::move(*out_);
  }

 private:
  bool failed() const { return budget_.failed(); }
  Value Fail(std::string message) {
    budget_.Fail(std::move(message));
    return Value();
  }

  // Counts the depth of what runs in what.
  class Nesting {
   public:
    explicit Nesting(Interpreter* self) : self_(self) {
      if (++self_->depth_ > kMaxRunDepth) self_->budget_.Fail(absl::StrCat("runs nested deeper than ", kMaxRunDepth));
    }
    ~Nesting() { --self_->depth_; }

   private:
    Interpreter* self_;
  };

  // ---- names

  Value Lookup(const std::string& name) {
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
  Value MakeFunction(const std::string& name) {
    Callable callable;
    callable.name = name;
    return Value::Of(std::make_shared<const Callable>(std::move(callable)));
  }

  Value LoopAttribute(const Loop& loop, const std::string& name) {
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

  Value Method(const Value& self, const std::string& name) {
    Callable callable;
    callable.name = name;
    callable.self = self;
    callable.method = true;
    if (!budget_.Charge(sizeof(Callable))) return Value();
    return Value::Of(std::make_shared<const Callable>(std::move(callable)));
  }

  Value FailUndefined(const Value& value) {
    const auto* name = std::get<Undefined>(value.data).name.get();
    return Fail(absl::StrCat("'", name == nullptr ? "value" : Printable(*name), "' is undefined"));
  }

  // container.name: a method before an item, as Jinja2 looks.
  Value Attribute(const Value& container, const std::string& name) {
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

  Value Item(const Value& container, const Value& key) {
    if (container.IsUndefined()) return FailUndefined(container);
    Value value = GetItem(budget_, container, key);
    if (!value.IsUndefined() || !key.IsText() || failed()) return value;
    if (container.IsDict() && container.dict().Find(key.text()) != nullptr) return value;
    return Attribute(container, key.text());
  }

  // ---- expressions

  Value Eval(const Expr& expr) {
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

  Value EvalOperator(const Expr& expr) {
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

  Value EvalChild(const Expr& expr, size_t index) { return failed() ? Value() : Eval(*expr.children[index]); }

  std::vector<Value> EvalAll(const Expr& expr, size_t first) {
    std::vector<Value> values;
    for (size_t i = first; i < expr.children.size() && !failed(); ++i) values.push_back(EvalChild(expr, i));
    return values;
  }

  Arguments EvalArguments(const Expr& expr) {
    Arguments arguments;
    arguments.positional = EvalAll(expr, 1);
    for (const auto& [name, value] : expr.named) {
      if (failed()) break;
      arguments.named.emplace_back(name, Eval(*value));
    }
    return arguments;
  }

  Value EvalDict(const Expr& expr) {
    std::vector<std::pair<Value, Value>> items;
    for (size_t i = 0; i + 1 < expr.children.size() && !failed(); i += 2) {
      Value key = EvalChild(expr, i);
      items.emplace_back(std::move(key), EvalChild(expr, i + 1));
    }
    return failed() ? Value() : MakeDict(budget_, std::move(items));
  }

  Value EvalSlice(const Expr& expr) {
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

  Value EvalCompare(const Expr& expr) {
    Value left = EvalChild(expr, 0);
    for (size_t i = 0; i < expr.ops.size(); ++i) {
      Value right = EvalChild(expr, i + 1);
      if (failed()) return Value();
      if (!Holds(expr.ops[i], left, right)) return Value::Of(false);
      left = std::move(right);
    }
    return Value::Of(true);
  }
  bool Holds(const std::string& op, const Value& a, const Value& b) {
    if (op == "==") return Equal(budget_, a, b);
    if (op == "!=") return !Equal(budget_, a, b);
    if (op == "in") return Contains(budget_, b, a);
    if (op == "not in") return !Contains(budget_, b, a);
    const int order = Compare(budget_, a, b, op.c_str());
    return op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
  }

  // ---- calls

  Value EvalCall(const Expr& expr) {
    const Expr& target = *expr.children[0];
    if (target.kind == ExprKind::kAttribute && target.name == "cycle" && target.children[0]->kind == ExprKind::kName &&
        target.children[0]->name == "loop") {
      return Cycle(expr);
    }
    const Value function = Eval(target);
    const Arguments arguments = EvalArguments(expr);
    if (failed()) return Value();
    budget_.line = expr.line;
    if (function.IsUndefined()) return FailUndefined(function);
    if (!function.IsCallable()) return Fail(absl::StrCat("calls a ", TypeName(function)));
    const Callable& callable = function.callable();
    if (callable.macro != nullptr) return CallMacro(*callable.macro, arguments);
    if (!callable.method) return CallFunction(callable.name, arguments);
    return Invoke(budget_, *FindMethod(callable.self, callable.name), "method", callable.self, arguments);
  }

  Value Cycle(const Expr& expr) {
    const Value loop = Lookup("loop");
    const std::vector<Value> values = EvalAll(expr, 1);
    if (failed() || !loop.Is<Loop*>() || values.empty()) return Fail("loop.cycle needs a loop and values");
    return values[static_cast<size_t>(std::get<Loop*>(loop.data)->index0) % values.size()];
  }

  Value CallFunction(const std::string& name, const Arguments& arguments) {
    const auto& positional = arguments.positional;
    if (name == "range") return Range(arguments);
    if (name == "raise_exception") {
      const std::string message = positional.empty() ? "" : ToString(budget_, positional[0]);
      return Fail(absl::StrCat("the template says: ", Printable(message)));
    }
    if (name == "strftime_now") return FormatTime(arguments);
    std::vector<std::pair<std::string, Value>> items;
    if (!positional.empty() && positional[0].IsDict()) {
      for (const auto& [key, value] : positional[0].dict().items) items.emplace_back(ToString(budget_, key), value);
    } else if (!positional.empty()) {
      return Fail(absl::StrCat("function \"", name, "\" takes named values or a dict"));
    }
    items.insert(items.end(), arguments.named.begin(), arguments.named.end());
    if (!budget_.Charge((items.size() + 1) * 2 * sizeof(Value))) return Value();
    if (name == "namespace") {
      namespaces_.push_back({std::move(items)});
      return Value::Of(&namespaces_.back());
    }
    std::vector<std::pair<Value, Value>> pairs;
    for (auto& [key, value] : items) pairs.emplace_back(MakeText(budget_, key), std::move(value));
    return failed() ? Value() : MakeDict(budget_, std::move(pairs));
  }

  Value Range(const Arguments& arguments) {
    const auto& given = arguments.positional;
    const bool integers = std::all_of(given.begin(), given.end(), [](const Value& v) { return v.IsInteger(); });
    if (given.empty() || given.size() > 3 || !arguments.named.empty() || !integers) {
      return Fail("function \"range\" takes 1 to 3 ints");
    }
    const __int128 start = given.size() > 1 ? given[0].integer() : 0;
    const __int128 stop = given[given.size() > 1 ? 1 : 0].integer();
    const __int128 step = given.size() > 2 ? given[2].integer() : 1;
    if (step == 0) return Fail("function \"range\" has a step of 0");
    const __int128 count = step > 0 ? (stop - start + step - 1) / step : (start - stop - step - 1) / -step;
    if (count > kMaxRange) return Fail(absl::StrCat("function \"range\" makes more than ", kMaxRange, " items"));
    std::vector<Value> items;
    for (__int128 i = 0; i < count; ++i) items.push_back(Value::Of(static_cast<int64_t>(start + i * step)));
    return MakeList(budget_, std::move(items));
  }

  Value FormatTime(const Arguments& arguments) {
    if (arguments.positional.size() != 1 || !arguments.positional[0].IsText() || !arguments.named.empty()) {
      return Fail("function \"strftime_now\" takes a format");
    }
    const std::string& format = arguments.positional[0].text();
    char buffer[1024];
    const std::tm now = *now_;
    const size_t length = format.empty() || format.size() > 128 || format.find('\0') != std::string::npos
                              ? 0
                              : std::strftime(buffer, sizeof(buffer), format.c_str(), &now);
    if (length == 0 && !format.empty()) return Fail("function \"strftime_now\" has a format that makes no text");
    return MakeText(budget_, std::string(buffer, length));
  }

  Value CallMacro(const MacroStatement& macro, const Arguments& arguments) {
    const Nesting nesting(this);
    if (failed()) return Value();
    if (arguments.positional.size() > macro.parameters.size()) {
      return Fail(absl::StrCat("macro \"", Printable(macro.name), "\" takes ", macro.parameters.size(), " arguments"));
    }
    Scope scope;
    scope.parent = &globals_;
    for (size_t i = 0; i < arguments.positional.size(); ++i) {
      scope.variables[macro.parameters[i]] = arguments.positional[i];
    }
    for (const auto& [name, value] : arguments.named) {
      const auto at = std::find(macro.parameters.begin(), macro.parameters.end(), name);
      if (at == macro.parameters.end()) {
        return Fail(absl::StrCat("macro \"", Printable(macro.name), "\" has no parameter \"", Printable(name), "\""));
      }
      scope.variables[name] = value;
    }
    Scope* const caller = scope_;
    std::string* const caller_out = out_;
    std::string out;
    scope_ = &scope;
    out_ = &out;
    for (size_t i = 0; i < macro.parameters.size() && !failed(); ++i) {
      if (scope.variables.count(macro.parameters[i]) > 0) continue;
      const auto& otherwise = macro.defaults[i];
      scope.variables[macro.parameters[i]] =
          otherwise != nullptr ? Eval(*otherwise) : MakeUndefined(macro.parameters[i]);
    }
    RunBody(macro.body);
    scope_ = caller;
    out_ = caller_out;
    return MakeText(budget_, std::move(out));
  }

  // ---- statements

  void Print(std::string_view text) {
    if (out_->size() + text.size() > limits_.output_bytes) {
      budget_.Fail(absl::StrCat("writes more than ", limits_.output_bytes, " bytes"));
    } else {
      out_->append(text);
    }
  }

  Flow RunBody(const Statement::Body& body) {
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

  Flow RunIf(const Statement& statement) {
    for (const auto& [condition, body] : statement.branches) {
      const Value value = Eval(*condition);
      if (failed()) return Flow::kNext;
      if (Truthy(value)) return RunBody(body);
    }
    return RunBody(statement.otherwise);
  }

  void RunFor(const Statement& statement) {
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

  // Names take a value, or each its item of one.
  void Bind(const std::vector<Target>& targets, const Value& value, Scope* scope) {
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

  void Assign(const Target& target, const Value& value, Scope* scope) {
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

  void RunSet(const Statement& statement) {
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

}  // namespace

absl::StatusOr<std::string> RunTemplate(const Statement::Body& body,
                                        const std::vector<std::pair<std::string, Value>>& variables,
                                        const std::optional<std::tm>& now, const RunLimits& limits, Budget* budget) {
  Interpreter interpreter(budget, limits, now);
  std::string out = interpreter.Run(body, variables);
  if (budget->failed()) return TemplateError(budget->failed_line(), budget->message());
  return out;
}

}  // namespace lockstep::jinja
