#include "engine/tokenizer/jinja_value.h"

#include <utf8proc.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/byte_chars.h"

namespace lockstep::jinja {
namespace {

int DepthOf(const Value& value) {
  if (value.IsList()) return value.list().depth;
  if (value.IsDict()) return value.dict().depth;
  if (value.IsCallable()) return 1 + DepthOf(value.callable().self);
  return 0;
}

bool CheckDepth(Budget& budget, int depth) {
  if (depth <= kMaxValueDepth) return true;
  budget.Fail(absl::StrCat("makes a value nested deeper than ", kMaxValueDepth));
  return false;
}

bool EqualItems(Budget& budget, const std::vector<Value>& a, const std::vector<Value>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!Equal(budget, a[i], b[i])) return false;
  }
  return true;
}

bool EqualDicts(Budget& budget, const Dict& a, const Dict& b) {
  if (a.items.size() != b.items.size()) return false;
  for (const auto& [key, value] : a.items) {
    bool found = false;
    for (const auto& other : b.items) {
      if (budget.failed()) return false;
      if (!Equal(budget, key, other.first)) continue;
      found = true;
      if (!Equal(budget, value, other.second)) return false;
      break;
    }
    if (!found) return false;
  }
  return true;
}

}  // namespace

const Value* Dict::Find(std::string_view key) const {
  for (const auto& [name, value] : items) {
    if (name.IsText() && name.text() == key) return &value;
  }
  return nullptr;
}

Value MakeText(Budget& budget, std::string text) {
  if (!budget.Charge(text.size() + sizeof(Value))) return Value();
  if (text.size() > kMaxTextBytes) {
    budget.Fail(absl::StrCat("makes a str of ", text.size(), " bytes, the limit is ", kMaxTextBytes));
    return Value();
  }
  return Value::Of(Text{std::make_shared<const std::string>(std::move(text))});
}

Value MakeList(Budget& budget, std::vector<Value> items, bool tuple) {
  if (!budget.Charge((items.size() + 1) * sizeof(Value))) return Value();
  List list{std::move(items), tuple, 1};
  for (const Value& item : list.items) list.depth = std::max(list.depth, 1 + DepthOf(item));
  if (!CheckDepth(budget, list.depth)) return Value();
  return Value::Of(std::make_shared<const List>(std::move(list)));
}

Value MakeDict(Budget& budget, std::vector<std::pair<Value, Value>> items) {
  if (!budget.Charge((items.size() + 1) * 2 * sizeof(Value))) return Value();
  Dict dict;
  for (auto& item : items) {
    const Value& key = item.first;
    if (!key.IsText() && !key.IsNumber() && !key.IsNone()) {
      budget.Fail(absl::StrCat("uses a ", TypeName(key), " as a dictionary's key"));
      return Value();
    }
    dict.depth = std::max({dict.depth, 1 + DepthOf(key), 1 + DepthOf(item.second)});
    auto known = std::find_if(dict.items.begin(), dict.items.end(),
                              [&](const auto& other) { return Equal(budget, other.first, key); });
    if (budget.failed()) return Value();
    if (known != dict.items.end()) {
      known->second = std::move(item.second);
    } else {
      dict.items.push_back(std::move(item));
    }
  }
  if (!CheckDepth(budget, dict.depth)) return Value();
  return Value::Of(std::make_shared<const Dict>(std::move(dict)));
}

Value MakeUndefined(std::string name) {
  return Value::Of(Undefined{std::make_shared<const std::string>(std::move(name))});
}

const char* TypeName(const Value& value) {
  static constexpr const char* kNames[] = {"undefined", "NoneType", "bool",      "int",  "float",   "str",
                                           "list",      "dict",     "Namespace", "loop", "function"};
  if (value.IsList() && value.list().tuple) return "tuple";
  return kNames[value.data.index()];
}

bool Truthy(const Value& value) {
  if (value.IsUndefined() || value.IsNone()) return false;
  if (value.IsNumber()) return value.number() != 0;
  if (value.IsText()) return !value.text().empty();
  if (value.IsList()) return !value.list().items.empty();
  if (value.IsDict()) return !value.dict().items.empty();
  return true;
}

bool Equal(Budget& budget, const Value& a, const Value& b) {
  if (!budget.Spend()) return false;
  if (a.IsInteger() && b.IsInteger()) return a.integer() == b.integer();
  if (a.IsNumber() && b.IsNumber()) return a.number() == b.number();
  if (a.data.index() != b.data.index()) return false;
  if (a.IsUndefined() || a.IsNone()) return true;
  if (a.IsText())
    return a.text().size() == b.text().size() && budget.SpendBytes(a.text().size()) && a.text() == b.text();
  if (a.IsList()) return a.list().tuple == b.list().tuple && EqualItems(budget, a.list().items, b.list().items);
  if (a.IsDict()) return EqualDicts(budget, a.dict(), b.dict());
  if (a.Is<Namespace*>()) return std::get<Namespace*>(a.data) == std::get<Namespace*>(b.data);
  if (a.IsCallable()) return &a.callable() == &b.callable();
  return std::get<Loop*>(a.data) == std::get<Loop*>(b.data);
}

int Compare(Budget& budget, const Value& a, const Value& b, const char* op) {
  if (a.IsInteger() && b.IsInteger()) {
    return a.integer() < b.integer() ? -1 : a.integer() > b.integer();
  }
  if (a.IsNumber() && b.IsNumber()) return a.number() < b.number() ? -1 : a.number() > b.number();
  // UTF-8 sorts by code point, as Python's strings do.
  if (a.IsText() && b.IsText()) {
    budget.SpendBytes(std::min(a.text().size(), b.text().size()));
    return std::clamp(a.text().compare(b.text()), -1, 1);
  }
  budget.Fail(absl::StrCat("compares ", TypeName(a), " ", op, " ", TypeName(b), ", which have no order"));
  return 0;
}

bool Contains(Budget& budget, const Value& container, const Value& item) {
  if (container.IsText()) {
    if (!budget.SpendBytes(container.text().size(), item.IsText() ? item.text().size() : 0)) return false;
    if (item.IsText()) return container.text().find(item.text()) != std::string::npos;
    budget.Fail(absl::StrCat("looks for a ", TypeName(item), " in a str"));
    return false;
  }
  if (container.IsList()) {
    const auto& items = container.list().items;
    return std::any_of(items.begin(), items.end(), [&](const Value& other) { return Equal(budget, item, other); });
  }
  if (container.IsDict()) {
    const auto& items = container.dict().items;
    return std::any_of(items.begin(), items.end(), [&](const auto& other) { return Equal(budget, item, other.first); });
  }
  if (!container.IsUndefined()) budget.Fail(absl::StrCat("looks for a value in a ", TypeName(container)));
  return false;
}

std::vector<Value> Iterate(Budget& budget, const Value& value) {
  std::vector<Value> items;
  if (value.IsUndefined()) return items;
  if (value.IsList()) {
    if (budget.Charge(value.list().items.size() * sizeof(Value))) items = value.list().items;
  } else if (value.IsDict()) {
    if (!budget.Charge(value.dict().items.size() * sizeof(Value))) return items;
    for (const auto& item : value.dict().items) items.push_back(item.first);
  } else if (value.IsText()) {
    for (const std::string_view character : Characters(value.text())) {
      items.push_back(MakeText(budget, std::string(character)));
      if (budget.failed()) break;
    }
  } else {
    budget.Fail(absl::StrCat("goes over a ", TypeName(value), ", which holds no items"));
  }
  return items;
}

int64_t Length(Budget& budget, const Value& value) {
  if (value.IsUndefined()) return 0;
  if (value.IsText()) {
    budget.SpendBytes(value.text().size());
    return static_cast<int64_t>(CodePoints(value.text()));
  }
  if (value.IsList()) return static_cast<int64_t>(value.list().items.size());
  if (value.IsDict()) return static_cast<int64_t>(value.dict().items.size());
  budget.Fail(absl::StrCat("asks for the length of a ", TypeName(value)));
  return 0;
}

size_t CodePoints(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::vector<std::string_view> Characters(std::string_view text) {
  std::vector<std::string_view> characters;
  while (!text.empty()) {
    const auto length = static_cast<size_t>(DecodeUtf8(text).length);
    characters.push_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return characters;
}

bool IsPythonSpace(int32_t code) {
  if (code == ' ' || (code >= '\t' && code <= '\r') || (code >= 0x1C && code <= 0x1F) || code == 0x85) return true;
  if (code < 0x80) return false;
  const auto category = utf8proc_category(code);
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

}  // namespace lockstep::jinja
