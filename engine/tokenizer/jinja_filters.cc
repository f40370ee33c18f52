// Filters (value | name) and tests (value is name), with Jinja2's arguments.
#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/jinja_ast.h"
#include "engine/tokenizer/jinja_builtins.h"

namespace lockstep::jinja {
namespace {

Value TextMethod(Budget& budget, const Value& self, const char* method) {
  const Value text = MakeText(budget, ToString(budget, self));
  if (budget.failed()) return Value();
  return Invoke(budget, *FindMethod(text, method), "method", text, {});
}

Value Trim(Budget& budget, const Value& self, const Bound& a) {
  const std::string text = ToString(budget, self);
  const std::string* characters = a[0] != nullptr && a[0]->IsText() ? &a[0]->text() : nullptr;
  return MakeText(budget, std::string(Strip(text, characters, true, true)));
}

// item.a.b for "a.b", as map, selectattr and join take it; a number is an index.
Value AttributePath(Budget& budget, Value item, const Value& path) {
  if (!path.IsText()) return GetItem(budget, item, path);
  std::string_view rest = path.text();
  while (budget.Spend()) {
    const size_t dot = rest.find('.');
    const std::string part(rest.substr(0, dot));
    int64_t index = 0;
    item = GetItem(budget, item, absl::SimpleAtoi(part, &index) ? Value::Of(index) : MakeText(budget, part));
    if (dot == std::string_view::npos) break;
    rest.remove_prefix(dot + 1);
  }
  return item;
}

bool Flag(const Value* value, bool fallback) { return value == nullptr ? fallback : Truthy(*value); }

Value ToJsonFilter(Budget& budget, const Value& self, const Bound& a) {
  JsonStyle style;
  style.ensure_ascii = Flag(a[0], false);
  if (a[1] != nullptr && !a[1]->IsNone()) {
    if (!a[1]->IsInteger() || a[1]->integer() < 0 || a[1]->integer() > 64) {
      budget.Fail("tojson takes an indent of 0 to 64");
      return Value();
    }
    style.indent = a[1]->integer();
  }
  style.item_separator = style.indent < 0 ? ", " : ",";
  style.key_separator = ": ";
  if (a[2] != nullptr && !a[2]->IsNone()) {
    const bool pair = a[2]->IsList() && a[2]->list().items.size() == 2 && a[2]->list().items[0].IsText() &&
                      a[2]->list().items[1].IsText();
    if (!pair) {
      budget.Fail("tojson takes separators as two strs");
      return Value();
    }
    style.item_separator = a[2]->list().items[0].text();
    style.key_separator = a[2]->list().items[1].text();
  }
  style.sort_keys = Flag(a[3], false);
  return MakeText(budget, ToJson(budget, self, style));
}

Value LengthFilter(Budget& budget, const Value& self, const Bound&) { return Value::Of(Length(budget, self)); }

Value Default(Budget& budget, const Value& self, const Bound& a) {
  if (!self.IsUndefined() && !(Flag(a[1], false) && !Truthy(self))) return self;
  return a[0] != nullptr ? *a[0] : MakeText(budget, "");
}

Value Join(Budget& budget, const Value& self, const Bound& a) {
  const std::string separator = a[0] != nullptr ? ToString(budget, *a[0]) : "";
  std::string out;
  const std::vector<Value> items = Iterate(budget, self);
  for (size_t i = 0; i < items.size() && !budget.failed(); ++i) {
    const Value item = a[1] != nullptr ? AttributePath(budget, items[i], *a[1]) : items[i];
    if (i > 0 && budget.Charge(separator.size())) out += separator;
    const std::string text = ToString(budget, item);
    if (budget.Charge(text.size())) out += text;
  }
  return MakeText(budget, std::move(out));
}

Value Upper(Budget& budget, const Value& self, const Bound&) { return TextMethod(budget, self, "upper"); }
Value Lower(Budget& budget, const Value& self, const Bound&) { return TextMethod(budget, self, "lower"); }
Value Capitalize(Budget& budget, const Value& self, const Bound&) { return TextMethod(budget, self, "capitalize"); }

Value First(Budget& budget, const Value& self, const Bound&) {
  const std::vector<Value> items = Iterate(budget, self);
  return items.empty() ? MakeUndefined("first") : items.front();
}
Value Last(Budget& budget, const Value& self, const Bound&) {
  const std::vector<Value> items = Iterate(budget, self);
  return items.empty() ? MakeUndefined("last") : items.back();
}
Value ListFilter(Budget& budget, const Value& self, const Bound&) { return MakeList(budget, Iterate(budget, self)); }
Value String(Budget& budget, const Value& self, const Bound&) {
  return self.IsText() ? self : MakeText(budget, ToString(budget, self));
}
Value Safe(Budget& budget, const Value& self, const Bound&) {
  Value text = MakeText(budget, ToString(budget, self));
  if (text.IsText()) std::get<Text>(text.data).safe = true;
  return text;
}
Value Items(Budget& budget, const Value& self, const Bound& a) {
  if (self.IsUndefined()) return MakeList(budget, {});
  if (self.IsDict()) return FindMethod(self, "items")->function(budget, self, a);
  budget.Fail(absl::StrCat("takes the items of a ", TypeName(self)));
  return Value();
}
Value Reverse(Budget& budget, const Value& self, const Bound&) {
  std::vector<Value> items = Iterate(budget, self);
  std::reverse(items.begin(), items.end());
  if (!self.IsText()) return MakeList(budget, std::move(items));
  std::string out;
  for (const Value& item : items) out += item.text();
  return MakeText(budget, std::move(out));
}

Value Replace(Budget& budget, const Value& self, const Bound& a) {
  if (a[0] == nullptr || a[1] == nullptr || (a[2] != nullptr && !a[2]->IsNone() && !a[2]->IsInteger())) {
    budget.Fail("filter \"replace\" takes two strs and a count");
    return Value();
  }
  const int64_t count = a[2] != nullptr && a[2]->IsInteger() ? a[2]->integer() : -1;
  return MakeText(budget,
                  ReplaceText(budget, ToString(budget, self), ToString(budget, *a[0]), ToString(budget, *a[1]), count));
}

Value Int(Budget&, const Value& self, const Bound& a) {
  const Value fallback = a[0] != nullptr ? *a[0] : Value::Of(int64_t{0});
  double number = 0;
  if (self.IsInteger()) return Value::Of(self.integer());
  if (self.IsText()) {
    int64_t integer = 0;
    if (absl::SimpleAtoi(self.text(), &integer)) return Value::Of(integer);
    if (!absl::SimpleAtod(self.text(), &number)) return fallback;
  } else if (self.Is<double>()) {
    number = self.number();
  } else {
    return fallback;
  }
  return std::abs(number) < 9e18 ? Value::Of(static_cast<int64_t>(number)) : fallback;
}
Value Float(Budget&, const Value& self, const Bound& a) {
  double number = 0;
  if (self.IsNumber()) return Value::Of(self.number());
  if (self.IsText() && absl::SimpleAtod(self.text(), &number)) return Value::Of(number);
  return a[0] != nullptr ? *a[0] : Value::Of(0.0);
}
Value Abs(Budget& budget, const Value& self, const Bound&) {
  if (self.Is<double>()) return Value::Of(std::abs(self.number()));
  if (self.IsInteger() && self.integer() >= 0) return Value::Of(self.integer());
  return Arithmetic(budget, "-", Value::Of(int64_t{0}), self);
}

// Every line but the first (and it too with `first`) moved right; an empty line stays empty unless `blank`.
Value Indent(Budget& budget, const Value& self, const Bound& a) {
  std::string margin(4, ' ');
  if (a[0] != nullptr && a[0]->IsText()) {
    margin = a[0]->text();
  } else if (a[0] != nullptr && a[0]->IsInteger() && a[0]->integer() <= 1024) {
    margin.assign(static_cast<size_t>(std::max<int64_t>(a[0]->integer(), 0)), ' ');
  } else if (a[0] != nullptr) {
    budget.Fail("indent takes a width of at most 1024 or a str");
    return Value();
  }
  const std::string text = ToString(budget, self) + "\n";
  std::string out = Flag(a[1], false) ? margin : "";
  const std::vector<std::string_view> lines = LinesOf(text);
  for (size_t i = 0; i < lines.size() && !budget.failed(); ++i) {
    if (i > 0) out += '\n';
    if (i > 0 && (!lines[i].empty() || Flag(a[2], false)) && budget.Charge(margin.size())) out += margin;
    out += lines[i];
  }
  return MakeText(budget, std::move(out));
}

const std::vector<BuiltIn>& Filters() {
  static const auto* filters = new std::vector<BuiltIn>{
      {"trim", {"chars"}, Trim},
      {"tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}, ToJsonFilter},
      {"length", {}, LengthFilter},
      {"count", {}, LengthFilter},
      {"default", {"default_value", "boolean"}, Default},
      {"d", {"default_value", "boolean"}, Default},
      {"join", {"d", "attribute"}, Join},
      {"upper", {}, Upper},
      {"lower", {}, Lower},
      {"capitalize", {}, Capitalize},
      {"first", {}, First},
      {"last", {}, Last},
      {"list", {}, ListFilter},
      {"string", {}, String},
      {"safe", {}, Safe},
      {"items", {}, Items},
      {"reverse", {}, Reverse},
      {"replace", {"old", "new", "count"}, Replace},
      {"int", {"default"}, Int},
      {"float", {"default"}, Float},
      {"abs", {}, Abs},
      {"indent", {"width", "first", "blank"}, Indent},
  };
  return *filters;
}

// map, select, reject, selectattr, rejectattr: over all items, by another filter or test.
bool IsListFilter(std::string_view name) {
  return name == "map" || name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr";
}

Value Map(Budget& budget, const std::vector<Value>& items, const Arguments& arguments) {
  std::vector<Value> out;
  const bool by_attribute =
      arguments.named.size() == 1 && arguments.named[0].first == "attribute" && arguments.positional.empty();
  const bool by_filter = arguments.named.empty() && !arguments.positional.empty() && arguments.positional[0].IsText() &&
                         KnownFilter(arguments.positional[0].text());
  if (!by_attribute && !by_filter) {
    budget.Fail("filter \"map\" takes attribute= or the name of a supported filter");
    return Value();
  }
  Arguments rest;
  if (by_filter) rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
  for (const Value& item : items) {
    if (!budget.Spend()) return Value();
    out.push_back(by_attribute ? AttributePath(budget, item, arguments.named[0].second)
                               : ApplyFilter(budget, arguments.positional[0].text(), item, rest));
  }
  return MakeList(budget, std::move(out));
}

Value Select(Budget& budget, std::string_view name, const std::vector<Value>& items, const Arguments& arguments) {
  const bool by_attribute = name == "selectattr" || name == "rejectattr";
  const bool wanted = name[0] == 's';
  size_t at = by_attribute ? 1 : 0;
  const bool has_test = arguments.positional.size() > at;
  if (arguments.positional.size() < at || !arguments.named.empty() ||
      (has_test && !(arguments.positional[at].IsText() && KnownTest(arguments.positional[at].text())))) {
    budget.Fail(
        absl::StrCat("filter \"", std::string(name), "\" takes the name of a supported test and its arguments"));
    return Value();
  }
  std::vector<Value> rest;
  if (has_test) rest.assign(arguments.positional.begin() + static_cast<long>(at) + 1, arguments.positional.end());
  std::vector<Value> out;
  for (const Value& item : items) {
    if (!budget.Spend()) return Value();
    const Value value = by_attribute ? AttributePath(budget, item, arguments.positional[0]) : item;
    const bool holds = has_test ? ApplyTest(budget, arguments.positional[at].text(), value, rest) : Truthy(value);
    if (holds == wanted) out.push_back(item);
  }
  return MakeList(budget, std::move(out));
}

struct Test {
  std::string_view name;
  size_t arguments;
  bool (*function)(Budget& budget, const Value& value, const std::vector<Value>& arguments);
};
using Args = std::vector<Value>;

bool IsCased(const Value& v, bool upper) {
  return v.IsText() && ChangeCase(v.text(), upper) == v.text() && ChangeCase(v.text(), !upper) != v.text();
}

bool Divisible(Budget& budget, const Value& v, const Value& by) {
  const Value rest = Arithmetic(budget, "%", v, by);
  return !budget.failed() && rest.IsNumber() && rest.number() == 0;
}

constexpr auto kEqual = [](Budget& b, const Value& v, const Args& a) { return Equal(b, v, a[0]); };
constexpr auto kUnequal = [](Budget& b, const Value& v, const Args& a) { return !Equal(b, v, a[0]); };
constexpr auto kLess = [](Budget& b, const Value& v, const Args& a) { return Compare(b, v, a[0], "<") < 0; };
constexpr auto kLessEqual = [](Budget& b, const Value& v, const Args& a) { return Compare(b, v, a[0], "<=") <= 0; };
constexpr auto kGreater = [](Budget& b, const Value& v, const Args& a) { return Compare(b, v, a[0], ">") > 0; };
constexpr auto kGreaterEqual = [](Budget& b, const Value& v, const Args& a) { return Compare(b, v, a[0], ">=") >= 0; };

const std::vector<Test>& Tests() {
  static const auto* tests = new std::vector<Test>{
      {"defined", 0, [](Budget&, const Value& v, const Args&) { return !v.IsUndefined(); }},
      {"undefined", 0, [](Budget&, const Value& v, const Args&) { return v.IsUndefined(); }},
      {"none", 0, [](Budget&, const Value& v, const Args&) { return v.IsNone(); }},
      {"string", 0, [](Budget&, const Value& v, const Args&) { return v.IsText(); }},
      {"mapping", 0, [](Budget&, const Value& v, const Args&) { return v.IsDict(); }},
      {"iterable", 0,
       [](Budget&, const Value& v, const Args&) { return v.IsText() || v.IsList() || v.IsDict() || v.IsUndefined(); }},
      {"sequence", 0,
       [](Budget&, const Value& v, const Args&) { return v.IsText() || v.IsList() || v.IsDict() || v.IsUndefined(); }},
      {"number", 0, [](Budget&, const Value& v, const Args&) { return v.IsNumber(); }},
      {"integer", 0, [](Budget&, const Value& v, const Args&) { return v.Is<int64_t>(); }},
      {"float", 0, [](Budget&, const Value& v, const Args&) { return v.Is<double>(); }},
      {"boolean", 0, [](Budget&, const Value& v, const Args&) { return v.Is<bool>(); }},
      {"true", 0, [](Budget&, const Value& v, const Args&) { return v.Is<bool>() && std::get<bool>(v.data); }},
      {"false", 0, [](Budget&, const Value& v, const Args&) { return v.Is<bool>() && !std::get<bool>(v.data); }},
      {"callable", 0, [](Budget&, const Value& v, const Args&) { return v.IsCallable(); }},
      {"lower", 0, [](Budget&, const Value& v, const Args&) { return IsCased(v, false); }},
      {"upper", 0, [](Budget&, const Value& v, const Args&) { return IsCased(v, true); }},
      {"odd", 0, [](Budget& b, const Value& v, const Args&) { return !Divisible(b, v, Value::Of(int64_t{2})); }},
      {"even", 0, [](Budget& b, const Value& v, const Args&) { return Divisible(b, v, Value::Of(int64_t{2})); }},
      {"divisibleby", 1, [](Budget& b, const Value& v, const Args& a) { return Divisible(b, v, a[0]); }},
      {"in", 1, [](Budget& b, const Value& v, const Args& a) { return Contains(b, a[0], v); }},
      {"eq", 1, kEqual},
      {"equalto", 1, kEqual},
      {"ne", 1, kUnequal},
      {"lt", 1, kLess},
      {"lessthan", 1, kLess},
      {"le", 1, kLessEqual},
      {"gt", 1, kGreater},
      {"greaterthan", 1, kGreater},
      {"ge", 1, kGreaterEqual},
  };
  return *tests;
}

}  // namespace

bool KnownFilter(std::string_view name) {
  return IsListFilter(name) ||
         std::any_of(Filters().begin(), Filters().end(), [&](const BuiltIn& filter) { return filter.name == name; });
}

bool KnownTest(std::string_view name) {
  return std::any_of(Tests().begin(), Tests().end(), [&](const Test& test) { return test.name == name; });
}

Value ApplyFilter(Budget& budget, std::string_view name, const Value& self, const Arguments& arguments) {
  if (IsListFilter(name)) {
    const std::vector<Value> items = Iterate(budget, self);
    if (budget.failed()) return Value();
    return name == "map" ? Map(budget, items, arguments) : Select(budget, name, items, arguments);
  }
  for (const BuiltIn& filter : Filters()) {
    if (filter.name == name) return Invoke(budget, filter, "filter", self, arguments);
  }
  budget.Fail(absl::StrCat("filter \"", Printable(name), "\" is not supported"));
  return Value();
}

bool ApplyTest(Budget& budget, std::string_view name, const Value& self, const std::vector<Value>& arguments) {
  for (const Test& test : Tests()) {
    if (test.name != name) continue;
    if (!budget.SpendBytes(self.IsText() ? self.text().size() : 0)) return false;
    if (test.arguments == arguments.size()) return !budget.failed() && test.function(budget, self, arguments);
    budget.Fail(absl::StrCat("test \"", std::string(name), "\" takes ", test.arguments, " arguments"));
    return false;
  }
  budget.Fail(absl::StrCat("test \"", Printable(name), "\" is not supported"));
  return false;
}

}  // namespace lockstep::jinja
