// Functions and macros of chat templates.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/jinja_run.h"

namespace lockstep::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // Jinja2's sandbox has the same

}  // namespace

Value Interpreter::EvalCall(const Expr& expr) {
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

Value Interpreter::Cycle(const Expr& expr) {
  const Value loop = Lookup("loop");
  const std::vector<Value> values = EvalAll(expr, 1);
  if (failed() || !loop.Is<Loop*>() || values.empty()) return Fail("loop.cycle needs a loop and values");
  return values[static_cast<size_t>(std::get<Loop*>(loop.data)->index0) % values.size()];
}

Value Interpreter::CallFunction(const std::string& name, const Arguments& arguments) {
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

Value Interpreter::Range(const Arguments& arguments) {
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

Value Interpreter::FormatTime(const Arguments& arguments) {
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

Value Interpreter::CallMacro(const MacroStatement& macro, const Arguments& arguments) {
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
    scope.variables[macro.parameters[i]] = otherwise != nullptr ? Eval(*otherwise) : MakeUndefined(macro.parameters[i]);
  }
  RunBody(macro.body);
  scope_ = caller;
  out_ = caller_out;
  return MakeText(budget_, std::move(out));
}

}  // namespace lockstep::jinja
