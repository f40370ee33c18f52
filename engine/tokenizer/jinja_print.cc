// How values look: Python's str() and repr(), and json.dumps.
#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/tokenizer/byte_chars.h"
#include "engine/tokenizer/jinja_value.h"

namespace lockstep::jinja {
namespace {

// Python's repr of a float: the shortest digits that read back, in exponent form below 1e-4 and from 1e16 on.
std::string FloatText(double value, const char* infinity, const char* nan) {
  if (std::isnan(value)) return nan;
  if (std::isinf(value)) return value < 0 ? absl::StrCat("-", infinity) : infinity;
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  const std::string scientific(buffer, end.ptr);
  const size_t mark = scientific.find('e');
  const int exponent = std::atoi(scientific.c_str() + mark + 1);
  if (exponent < -4 || exponent >= 16) {
    return absl::StrCat(scientific.substr(0, mark), absl::StrFormat("e%+03d", exponent));
  }
  const auto fixed_end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed);
  std::string fixed(buffer, fixed_end.ptr);
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

bool Printable(int32_t code) {
  if (code == ' ') return true;
  switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

std::string ReprText(const std::string& text) {
  const bool double_quotes = text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  const char quote = double_quotes ? '"' : '\'';
  std::string out(1, quote);
  for (const std::string_view character : Characters(text)) {
    const int32_t code = DecodeUtf8(character).code;
    if (code == quote || code == '\\') {
      (out += '\\') += character;
    } else if (code == '\n' || code == '\r' || code == '\t') {
      absl::StrAppend(&out, "\\", code == '\n' ? "n" : code == '\r' ? "r" : "t");
    } else if (Printable(code)) {
      out += character;
    } else if (code < 0x100) {
      absl::StrAppendFormat(&out, "\\x%02x", code);
    } else if (code < 0x10000) {
      absl::StrAppendFormat(&out, "\\u%04x", code);
    } else {
      absl::StrAppendFormat(&out, "\\U%08x", code);
    }
  }
  return out + quote;
}

std::string JsonText(const std::string& text, bool ensure_ascii) {
  std::string out = "\"";
  for (const std::string_view character : Characters(text)) {
    const int32_t code = DecodeUtf8(character).code;
    static constexpr std::string_view kEscaped = "\"\\\n\r\t\f\b";
    const size_t escaped = code < 0x80 ? kEscaped.find(static_cast<char>(code)) : std::string_view::npos;
    if (escaped != std::string_view::npos) {
      absl::StrAppend(&out, "\\", std::string(1, "\"\\nrtfb"[escaped]));
    } else if (code < 0x20 || (ensure_ascii && code > 0x7e && code < 0x10000)) {
      absl::StrAppendFormat(&out, "\\u%04x", code);
    } else if (ensure_ascii && code >= 0x10000) {
      absl::StrAppendFormat(&out, "\\u%04x\\u%04x", 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + (code & 0x3FF));
    } else {
      out += character;
    }
  }
  return out + "\"";
}

// Appends and charges, so that a value which holds another many times over cannot print without end.
void Append(Budget& budget, std::string* out, std::string_view text) {
  if (budget.Spend() && budget.Charge(text.size())) out->append(text);
}

void AppendRepr(Budget& budget, const Value& value, std::string* out) {
  if (value.IsText()) return Append(budget, out, ReprText(value.text()));
  if (value.IsList()) {
    const List& list = value.list();
    Append(budget, out, list.tuple ? "(" : "[");
    for (size_t i = 0; i < list.items.size() && !budget.failed(); ++i) {
      if (i > 0) Append(budget, out, ", ");
      AppendRepr(budget, list.items[i], out);
    }
    Append(budget, out, !list.tuple ? "]" : list.items.size() == 1 ? ",)" : ")");
  } else if (value.IsDict()) {
    Append(budget, out, "{");
    const auto& items = value.dict().items;
    for (size_t i = 0; i < items.size() && !budget.failed(); ++i) {
      if (i > 0) Append(budget, out, ", ");
      AppendRepr(budget, items[i].first, out);
      Append(budget, out, ": ");
      AppendRepr(budget, items[i].second, out);
    }
    Append(budget, out, "}");
  } else {
    Append(budget, out, ToString(budget, value));
  }
}

class JsonWriter {
 public:
  JsonWriter(Budget& budget, const JsonStyle& style) : budget_(budget), style_(style) {}

  void Write(const Value& value) {
    if (value.IsText()) {
      Add(JsonText(value.text(), style_.ensure_ascii));
    } else if (value.IsNone()) {
      Add("null");
    } else if (value.Is<bool>()) {
      Add(std::get<bool>(value.data) ? "true" : "false");
    } else if (value.Is<double>()) {
      Add(FloatText(value.number(), "Infinity", "NaN"));
    } else if (value.Is<int64_t>()) {
      Add(absl::StrCat(value.integer()));
    } else if (value.IsList()) {
      WriteList(value.list());
    } else if (value.IsDict()) {
      WriteDict(value.dict());
    } else {
      budget_.Fail(absl::StrCat("turns a value of type ", TypeName(value), " into JSON"));
    }
  }
  std::string Take() { return std::move(out_); }

 private:
  void Add(std::string_view text) { Append(budget_, &out_, text); }
  void NewLine() {
    if (style_.indent < 0) return;
    Add("\n");
    Add(std::string(static_cast<size_t>(style_.indent * level_), ' '));
  }
  void WriteList(const List& list) {
    if (list.items.empty()) return Add("[]");
    Add("[");
    ++level_;
    for (size_t i = 0; i < list.items.size() && !budget_.failed(); ++i) {
      if (i > 0) Add(style_.item_separator);
      NewLine();
      Write(list.items[i]);
    }
    --level_;
    NewLine();
    Add("]");
  }
  void WriteDict(const Dict& dict) {
    if (dict.items.empty()) return Add("{}");
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict.items) items.push_back(&item);
    if (style_.sort_keys) {
      std::stable_sort(items.begin(), items.end(),
                       [&](const auto* a, const auto* b) { return Compare(budget_, a->first, b->first, "<") < 0; });
    }
    Add("{");
    ++level_;
    for (size_t i = 0; i < items.size() && !budget_.failed(); ++i) {
      if (i > 0) Add(style_.item_separator);
      NewLine();
      const Value& key = items[i]->first;
      if (key.IsText()) {
        Write(key);
      } else {
        Add("\"");
        Write(key);
        Add("\"");
      }
      Add(style_.key_separator);
      Write(items[i]->second);
    }
    --level_;
    NewLine();
    Add("}");
  }

  Budget& budget_;
  const JsonStyle& style_;
  int64_t level_ = 0;
  std::string out_;
};

}  // namespace

std::string ToString(Budget& budget, const Value& value) {
  if (value.IsText()) return value.text();
  if (value.IsUndefined()) return "";
  if (value.IsNone()) return "None";
  if (value.Is<bool>()) return std::get<bool>(value.data) ? "True" : "False";
  if (value.Is<int64_t>()) return absl::StrCat(value.integer());
  if (value.Is<double>()) return FloatText(value.number(), "inf", "nan");
  if (value.IsList() || value.IsDict()) return Repr(budget, value);
  budget.Fail(absl::StrCat("prints a ", TypeName(value), ", which has no text"));
  return "";
}

std::string Repr(Budget& budget, const Value& value) {
  std::string out;
  AppendRepr(budget, value, &out);
  return out;
}

std::string ToJson(Budget& budget, const Value& value, const JsonStyle& style) {
  JsonWriter writer(budget, style);
  writer.Write(value);
  return writer.Take();
}

}  // namespace lockstep::jinja
