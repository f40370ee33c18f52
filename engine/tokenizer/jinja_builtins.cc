#include "engine/tokenizer/jinja_builtins.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/jinja_ast.h"

namespace lockstep::jinja {
namespace {

Value Items(Budget& budget, const Value& self, const Bound&) {
  std::vector<Value> items;
  for (const auto& [key, value] : self.dict().items) {
    items.push_back(MakeList(budget, {key, value}, /*tuple=*/true));
    if (budget.failed()) return Value();
  }
  return MakeList(budget, std::move(items));
}
Value Keys(Budget& budget, const Value& self, const Bound&) { return MakeList(budget, Iterate(budget, self)); }
Value Values(Budget& budget, const Value& self, const Bound&) {
  std::vector<Value> items;
  for (const auto& item : self.dict().items) items.push_back(item.second);
  return MakeList(budget, std::move(items));
}
Value Get(Budget& budget, const Value& self, const Bound& a) {
  for (const auto& [key, value] : self.dict().items) {
    if (a[0] != nullptr && Equal(budget, key, *a[0])) return value;
  }
  return a[1] != nullptr ? *a[1] : Value::Of(None{});
}

const std::vector<BuiltIn>& DictMethods() {
  static const auto* methods = new std::vector<BuiltIn>{
      {"items", {}, Items}, {"keys", {}, Keys}, {"values", {}, Values}, {"get", {"key", "default"}, Get}};
  return *methods;
}

// The index-th item of `length`, counted from the end below 0; -1: out of range.
int64_t WrapIndex(int64_t index, int64_t length) {
  if (index < 0) index += length;
  return index < 0 || index >= length ? -1 : index;
}

bool SliceNumber(Budget& budget, const Value* value, int64_t* out) {
  if (value == nullptr || value->IsNone()) return false;
  if (value->IsInteger()) {
    *out = value->integer();
    return true;
  }
  budget.Fail(absl::StrCat("slices by a ", TypeName(*value)));
  return false;
}

Value Overflow(Budget& budget) {
  budget.Fail("computes an int beyond 64 bits");
  return Value();
}

Value IntegerArithmetic(Budget& budget, char op, bool floor, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == '+') return __builtin_add_overflow(a, b, &result) ? Overflow(budget) : Value::Of(result);
  if (op == '-') return __builtin_sub_overflow(a, b, &result) ? Overflow(budget) : Value::Of(result);
  if (op == '*') return __builtin_mul_overflow(a, b, &result) ? Overflow(budget) : Value::Of(result);
  if (b == 0) {
    budget.Fail("divides by zero");
    return Value();
  }
  if (op == '/' && !floor) return Value::Of(static_cast<double>(a) / static_cast<double>(b));
  if (b == -1) return op == '%' ? Value::Of(int64_t{0}) : IntegerArithmetic(budget, '-', false, 0, a);
  const int64_t quotient = a / b - (a % b != 0 && (a % b < 0) != (b < 0) ? 1 : 0);
  return Value::Of(op == '%' ? a - quotient * b : quotient);
}

Value FloatArithmetic(Budget& budget, char op, bool floor, double a, double b) {
  if (op == '+') return Value::Of(a + b);
  if (op == '-') return Value::Of(a - b);
  if (op == '*') return Value::Of(a * b);
  if (b == 0) {
    budget.Fail("divides by zero");
    return Value();
  }
  if (op == '/') return Value::Of(floor ? std::floor(a / b) : a / b);
  const double rest = std::fmod(a, b);
  return Value::Of(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
}

Value Repeat(Budget& budget, const Value& value, int64_t times) {
  times = std::max<int64_t>(times, 0);
  const size_t size = value.IsText() ? value.text().size() : value.list().items.size() * sizeof(Value);
  if (size > 0 && times > (int64_t{1} << 40) / static_cast<int64_t>(size)) {
    budget.Charge(SIZE_MAX);
    return Value();
  }
  if (!budget.Charge(size * static_cast<size_t>(times))) return Value();
  if (value.IsText()) {
    std::string out;
    for (int64_t i = 0; size > 0 && i < times; ++i) out += value.text();
    return MakeText(budget, std::move(out));
  }
  std::vector<Value> items;
  for (int64_t i = 0; size > 0 && i < times; ++i) {
    items.insert(items.end(), value.list().items.begin(), value.list().items.end());
  }
  return MakeList(budget, std::move(items), value.list().tuple);
}

}  // namespace

Value Invoke(Budget& budget, const BuiltIn& function, const char* what, const Value& self, const Arguments& arguments) {
  Bound bound(function.parameters.size(), nullptr);
  if (arguments.positional.size() > bound.size()) {
    budget.Fail(absl::StrCat(what, " \"", std::string(function.name), "\" takes ", bound.size(), " arguments"));
    return Value();
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) bound[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto at = std::find(function.parameters.begin(), function.parameters.end(), name);
    if (at == function.parameters.end()) {
      budget.Fail(absl::StrCat("argument \"", Printable(name), "\" of ", what, " \"", std::string(function.name),
                               "\" is not supported"));
      return Value();
    }
    bound[static_cast<size_t>(at - function.parameters.begin())] = &value;
  }
  if (!budget.SpendBytes(self.IsText() ? self.text().size() : 0)) return Value();
  return function.function(budget, self, bound);
}

const BuiltIn* FindMethod(const Value& self, std::string_view name) {
  if (!self.IsText() && !self.IsDict()) return nullptr;
  for (const BuiltIn& method : self.IsText() ? StringMethods() : DictMethods()) {
    if (method.name == name) return &method;
  }
  return nullptr;
}

Value GetItem(Budget& budget, const Value& container, const Value& key) {
  if (container.IsDict()) {
    for (const auto& [name, value] : container.dict().items) {
      if (Equal(budget, name, key)) return value;
    }
  } else if (container.IsList() && key.IsInteger()) {
    const auto& items = container.list().items;
    const int64_t index = WrapIndex(key.integer(), static_cast<int64_t>(items.size()));
    if (index >= 0) return items[static_cast<size_t>(index)];
  } else if (container.IsText() && key.IsInteger()) {
    if (!budget.SpendBytes(container.text().size())) return Value();
    const auto characters = Characters(container.text());
    const int64_t index = WrapIndex(key.integer(), static_cast<int64_t>(characters.size()));
    if (index >= 0) return MakeText(budget, std::string(characters[static_cast<size_t>(index)]));
  }
  return MakeUndefined(key.IsText() ? key.text() : key.IsInteger() ? absl::StrCat(key.integer()) : "item");
}

Value Slice(Budget& budget, const Value& container, const Value* start, const Value* stop, const Value* step) {
  if (!container.IsText() && !container.IsList()) {
    budget.Fail(absl::StrCat("slices a ", TypeName(container)));
    return Value();
  }
  std::vector<std::string_view> characters;
  if (container.IsText()) {
    if (!budget.Charge(container.text().size())) return Value();
    characters = Characters(container.text());
  }
  const auto length = static_cast<int64_t>(container.IsText() ? characters.size() : container.list().items.size());
  int64_t by = 1;
  SliceNumber(budget, step, &by);
  if (by == 0) budget.Fail("slices by a step of 0");
  if (budget.failed()) return Value();
  by = std::clamp<int64_t>(by, -length - 1, length + 1);
  const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? length : length - 1;
  int64_t begin = by > 0 ? low : high, end = by > 0 ? high : low;
  if (SliceNumber(budget, start, &begin)) begin = std::clamp(begin < 0 ? begin + length : begin, low, high);
  if (SliceNumber(budget, stop, &end)) end = std::clamp(end < 0 ? end + length : end, low, high);
  std::string text;
  std::vector<Value> items;
  for (int64_t i = begin; by > 0 ? i < end : i > end; i += by) {
    if (container.IsText()) {
      text += characters[static_cast<size_t>(i)];
    } else {
      items.push_back(container.list().items[static_cast<size_t>(i)]);
    }
  }
  if (container.IsText()) return MakeText(budget, std::move(text));
  return MakeList(budget, std::move(items), container.list().tuple);
}

Value Arithmetic(Budget& budget, std::string_view op, const Value& a, const Value& b) {
  const bool floor = op == "//";
  if (a.IsInteger() && b.IsInteger()) return IntegerArithmetic(budget, op[0], floor, a.integer(), b.integer());
  if (a.IsNumber() && b.IsNumber()) return FloatArithmetic(budget, op[0], floor, a.number(), b.number());
  if (op == "+" && a.IsText() && b.IsText()) {
    if (std::get<Text>(a.data).safe != std::get<Text>(b.data).safe) {
      budget.Fail("adds a str to one that filter \"safe\" marked, which would escape it; this is not supported");
      return Value();
    }
    if (!budget.Charge(a.text().size())) return Value();
    return MakeText(budget, absl::StrCat(a.text(), b.text()));
  }
  if (op == "+" && a.IsList() && b.IsList() && a.list().tuple == b.list().tuple) {
    std::vector<Value> items = Iterate(budget, a);
    const std::vector<Value> more = Iterate(budget, b);
    items.insert(items.end(), more.begin(), more.end());
    return MakeList(budget, std::move(items), a.list().tuple);
  }
  if (op == "*" && (a.IsText() || a.IsList()) && b.IsInteger()) return Repeat(budget, a, b.integer());
  if (op == "*" && (b.IsText() || b.IsList()) && a.IsInteger()) return Repeat(budget, b, a.integer());
  if (op == "%" && a.IsText()) {
    budget.Fail("formats a str by %, which is not supported");
    return Value();
  }
  const Value& undefined = a.IsUndefined() ? a : b;
  const auto* name = undefined.IsUndefined() ? std::get<Undefined>(undefined.data).name.get() : nullptr;
  if (name != nullptr) {
    budget.Fail(absl::StrCat("'", Printable(*name), "' is undefined"));
  } else {
    budget.Fail(
        absl::StrCat("has ", TypeName(a), " ", std::string(op), " ", TypeName(b), ", which Python does not do"));
  }
  return Value();
}

}  // namespace lockstep::jinja
