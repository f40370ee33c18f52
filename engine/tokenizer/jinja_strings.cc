// Methods of strings, as Python has them.
#include <utf8proc.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/byte_chars.h"
#include "engine/tokenizer/jinja_builtins.h"

namespace lockstep::jinja {
namespace {

// A string argument; null and no failure when it is absent or none.
const std::string* TextOf(Budget& budget, const Value* value, const char* method) {
  if (value == nullptr || value->IsNone()) return nullptr;
  if (value->IsText()) return &value->text();
  budget.Fail(absl::StrCat(method, " takes a str, not a ", TypeName(*value)));
  return nullptr;
}

int64_t IntegerOf(Budget& budget, const Value* value, int64_t fallback, const char* method) {
  if (value == nullptr) return fallback;
  if (value->IsInteger()) return value->integer();
  budget.Fail(absl::StrCat(method, " takes an int, not a ", TypeName(*value)));
  return fallback;
}

Value TextList(Budget& budget, const std::vector<std::string_view>& parts) {
  std::vector<Value> items;
  for (const std::string_view part : parts) {
    items.push_back(MakeText(budget, std::string(part)));
    if (budget.failed()) return Value();
  }
  return MakeList(budget, std::move(items));
}

size_t SpaceLength(std::string_view text) {
  const Utf8Char c = DecodeUtf8(text);
  return IsPythonSpace(c.code) ? static_cast<size_t>(c.length) : 0;
}

std::vector<std::string_view> SplitAtSpace(std::string_view text, int64_t limit) {
  std::vector<std::string_view> parts;
  while (true) {
    text = Strip(text, nullptr, true, false);
    if (text.empty()) return parts;
    if (limit >= 0 && static_cast<int64_t>(parts.size()) >= limit) {
      parts.push_back(Strip(text, nullptr, false, true));
      return parts;
    }
    size_t end = 0;
    while (end < text.size() && SpaceLength(text.substr(end)) == 0) {
      end += static_cast<size_t>(DecodeUtf8(text.substr(end)).length);
    }
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
}

Value Split(Budget& budget, const Value& self, const Bound& a) {
  const std::string* separator = TextOf(budget, a[0], "split");
  const int64_t limit = IntegerOf(budget, a[1], -1, "split");
  std::string_view text = self.text();
  if (budget.failed()) return Value();
  if (separator == nullptr) return TextList(budget, SplitAtSpace(text, limit));
  if (separator->empty()) {
    budget.Fail("splits at an empty str");
    return Value();
  }
  if (!budget.SpendBytes(text.size(), separator->size())) return Value();
  std::vector<std::string_view> parts;
  while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
    const size_t at = text.find(*separator);
    if (at == std::string_view::npos) break;
    parts.push_back(text.substr(0, at));
    text.remove_prefix(at + separator->size());
  }
  parts.push_back(text);
  return TextList(budget, parts);
}

Value RightSplit(Budget& budget, const Value& self, const Bound& a) {
  const std::string* separator = TextOf(budget, a[0], "rsplit");
  const int64_t limit = IntegerOf(budget, a[1], -1, "rsplit");
  if (budget.failed()) return Value();
  if (limit < 0) return Split(budget, self, a);
  if (separator == nullptr || separator->empty()) {
    budget.Fail("rsplit without a separator is not supported");
    return Value();
  }
  std::string_view text = self.text();
  if (!budget.SpendBytes(text.size(), separator->size())) return Value();
  std::vector<std::string_view> parts;
  while (static_cast<int64_t>(parts.size()) < limit) {
    const size_t at = text.rfind(*separator);
    if (at == std::string_view::npos) break;
    parts.push_back(text.substr(at + separator->size()));
    text = text.substr(0, at);
  }
  parts.push_back(text);
  std::reverse(parts.begin(), parts.end());
  return TextList(budget, parts);
}

Value StripMethod(Budget& budget, const Value& self, const Bound& a, bool left, bool right) {
  const std::string* characters = TextOf(budget, a[0], "strip");
  return MakeText(budget, std::string(Strip(self.text(), characters, left, right)));
}
Value StripBoth(Budget& b, const Value& self, const Bound& a) { return StripMethod(b, self, a, true, true); }
Value StripLeft(Budget& b, const Value& self, const Bound& a) { return StripMethod(b, self, a, true, false); }
Value StripRight(Budget& b, const Value& self, const Bound& a) { return StripMethod(b, self, a, false, true); }

// startswith and endswith: of one string or any of a tuple.
Value HasEdge(Budget& budget, const Value& self, const Value* edge, bool start) {
  if (edge != nullptr && edge->IsList() && edge->list().tuple) {
    for (const Value& item : edge->list().items) {
      const Value found = HasEdge(budget, self, &item, start);
      if (budget.failed() || Truthy(found)) return found;
    }
    return Value::Of(false);
  }
  if (edge == nullptr || !edge->IsText()) {
    budget.Fail(absl::StrCat(start ? "startswith" : "endswith", " takes a str"));
    return Value();
  }
  const std::string& text = self.text();
  const std::string& part = edge->text();
  if (part.size() > text.size()) return Value::Of(false);
  return Value::Of(text.compare(start ? 0 : text.size() - part.size(), part.size(), part) == 0);
}
Value StartsWith(Budget& b, const Value& self, const Bound& a) { return HasEdge(b, self, a[0], true); }
Value EndsWith(Budget& b, const Value& self, const Bound& a) { return HasEdge(b, self, a[0], false); }

Value RemoveEdge(Budget& budget, const Value& self, const Value* edge, bool start) {
  if (!Truthy(HasEdge(budget, self, edge, start)) || !edge->IsText()) return self;
  const std::string& text = self.text();
  const size_t rest = text.size() - edge->text().size();
  return MakeText(budget, start ? text.substr(text.size() - rest) : text.substr(0, rest));
}
Value RemovePrefix(Budget& b, const Value& self, const Bound& a) { return RemoveEdge(b, self, a[0], true); }
Value RemoveSuffix(Budget& b, const Value& self, const Bound& a) { return RemoveEdge(b, self, a[0], false); }

Value Upper(Budget& budget, const Value& self, const Bound&) { return MakeText(budget, ChangeCase(self.text(), true)); }
Value Lower(Budget& budget, const Value& self, const Bound&) {
  return MakeText(budget, ChangeCase(self.text(), false));
}

bool IsLetter(std::string_view character) {
  const auto category = utf8proc_category(DecodeUtf8(character).code);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

// capitalize: the first character upper, the others lower; title: so for each word.
Value Capitalize(Budget& budget, const Value& self, const Bound&) {
  const auto characters = Characters(self.text());
  std::string out;
  for (size_t i = 0; i < characters.size(); ++i) out += ChangeCase(characters[i], i == 0);
  return MakeText(budget, std::move(out));
}
Value Title(Budget& budget, const Value& self, const Bound&) {
  std::string out;
  bool in_word = false;
  for (const std::string_view character : Characters(self.text())) {
    out += ChangeCase(character, !in_word);
    in_word = IsLetter(character);
  }
  return MakeText(budget, std::move(out));
}

Value Replace(Budget& budget, const Value& self, const Bound& a) {
  const std::string* from = TextOf(budget, a[0], "replace");
  const std::string* to = TextOf(budget, a[1], "replace");
  const int64_t count = IntegerOf(budget, a[2], -1, "replace");
  if (budget.failed() || from == nullptr || to == nullptr) {
    budget.Fail("replace takes two strs");
    return Value();
  }
  return MakeText(budget, ReplaceText(budget, self.text(), *from, *to, count));
}

Value FindIn(Budget& budget, const Value& self, const Value* part, bool last) {
  if (part == nullptr || !part->IsText()) {
    budget.Fail("find takes a str");
    return Value();
  }
  const std::string& text = self.text();
  if (!budget.SpendBytes(text.size(), part->text().size())) return Value();
  const size_t at = last ? text.rfind(part->text()) : text.find(part->text());
  return Value::Of(at == std::string::npos ? int64_t{-1}
                                           : static_cast<int64_t>(CodePoints(std::string_view(text).substr(0, at))));
}
Value Find(Budget& b, const Value& self, const Bound& a) { return FindIn(b, self, a[0], false); }
Value RightFind(Budget& b, const Value& self, const Bound& a) { return FindIn(b, self, a[0], true); }

Value Count(Budget& budget, const Value& self, const Bound& a) {
  const std::string* part = TextOf(budget, a[0], "count");
  if (part == nullptr || part->empty()) {
    budget.Fail("count takes a str that is not empty");
    return Value();
  }
  if (!budget.SpendBytes(self.text().size(), part->size())) return Value();
  int64_t count = 0;
  for (size_t at = self.text().find(*part); at != std::string::npos; at = self.text().find(*part, at + part->size())) {
    ++count;
  }
  return Value::Of(count);
}

Value Join(Budget& budget, const Value& self, const Bound& a) {
  if (a[0] == nullptr) {
    budget.Fail("join takes a list");
    return Value();
  }
  std::string out;
  const std::vector<Value> items = Iterate(budget, *a[0]);
  for (size_t i = 0; i < items.size() && !budget.failed(); ++i) {
    if (!items[i].IsText()) {
      budget.Fail(absl::StrCat("joins a ", TypeName(items[i]), " as a str"));
      break;
    }
    if (i > 0 && budget.Charge(self.text().size())) out += self.text();
    if (budget.Charge(items[i].text().size())) out += items[i].text();
  }
  return MakeText(budget, std::move(out));
}

Value AllOf(const Value& self, bool (*holds)(utf8proc_category_t)) {
  const auto characters = Characters(self.text());
  return Value::Of(!characters.empty() && std::all_of(characters.begin(), characters.end(), [&](auto c) {
    return holds(utf8proc_category(DecodeUtf8(c).code));
  }));
}
Value IsDigit(Budget&, const Value& self, const Bound&) {
  return AllOf(self, [](utf8proc_category_t c) { return c == UTF8PROC_CATEGORY_ND; });
}
Value IsAlpha(Budget&, const Value& self, const Bound&) {
  return AllOf(self, [](utf8proc_category_t c) { return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO; });
}
Value IsSpace(Budget&, const Value& self, const Bound&) {
  return Value::Of(!self.text().empty() && Strip(self.text(), nullptr, true, false).empty());
}

Value SplitLines(Budget& budget, const Value& self, const Bound& a) {
  if (a[0] != nullptr && Truthy(*a[0])) {
    budget.Fail("splitlines with keepends is not supported");
    return Value();
  }
  return TextList(budget, LinesOf(self.text()));
}

}  // namespace

std::string_view Strip(std::string_view text, const std::string* characters, bool left, bool right) {
  if (characters != nullptr && characters->empty()) return text;
  const auto goes = [&](std::string_view character) {
    if (characters == nullptr) return IsPythonSpace(DecodeUtf8(character).code);
    return characters->find(character) != std::string::npos;  // a whole character matches only at one
  };
  while (left && !text.empty()) {
    const auto length = static_cast<size_t>(DecodeUtf8(text).length);
    if (!goes(text.substr(0, length))) break;
    text.remove_prefix(length);
  }
  while (right && !text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    if (!goes(text.substr(start))) break;
    text = text.substr(0, start);
  }
  return text;
}

std::vector<std::string_view> LinesOf(std::string_view text) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(at));
    auto length = static_cast<size_t>(c.length);
    const bool ends = (c.code >= '\n' && c.code <= '\r') || (c.code >= 0x1C && c.code <= 0x1E) || c.code == 0x85 ||
                      c.code == 0x2028 || c.code == 0x2029;
    if (ends) {
      if (text.compare(at, 2, "\r\n") == 0) length = 2;
      lines.push_back(text.substr(begin, at - begin));
      begin = at + length;
    }
    at += length;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::string ReplaceText(Budget& budget, std::string_view text, std::string_view from, std::string_view to,
                        int64_t count) {
  std::string out;
  if (!budget.Charge(text.size()) || !budget.SpendBytes(text.size(), from.size())) return out;
  const auto replace = [&](size_t bytes) {
    out += text.substr(0, bytes);
    text.remove_prefix(bytes);
    if (budget.Spend() && budget.Charge(to.size())) out += to;
    --count;
  };
  if (from.empty()) {  // before every character and at the end
    while (count != 0 && !budget.failed()) {
      replace(0);
      if (text.empty()) break;
      const auto length = static_cast<size_t>(DecodeUtf8(text).length);
      out += text.substr(0, length);
      text.remove_prefix(length);
    }
  } else {
    while (count != 0 && !budget.failed()) {
      const size_t at = text.find(from);
      if (at == std::string_view::npos) break;
      replace(at);
      text.remove_prefix(from.size());
    }
  }
  out += text;
  return out;
}

// One code point to one, except for the sharp s, which has no capital of its own.
std::string ChangeCase(std::string_view text, bool upper) {
  std::string out;
  for (const std::string_view character : Characters(text)) {
    const int32_t code = DecodeUtf8(character).code;
    if (upper && code == 0xDF) {
      out += "SS";
      continue;
    }
    utf8proc_uint8_t bytes[4];
    const auto length = utf8proc_encode_char(upper ? utf8proc_toupper(code) : utf8proc_tolower(code), bytes);
    out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
  }
  return out;
}

const std::vector<BuiltIn>& StringMethods() {
  static const auto* methods = new std::vector<BuiltIn>{
      {"split", {"sep", "maxsplit"}, Split},
      {"rsplit", {"sep", "maxsplit"}, RightSplit},
      {"strip", {"chars"}, StripBoth},
      {"lstrip", {"chars"}, StripLeft},
      {"rstrip", {"chars"}, StripRight},
      {"startswith", {"prefix"}, StartsWith},
      {"endswith", {"suffix"}, EndsWith},
      {"removeprefix", {"prefix"}, RemovePrefix},
      {"removesuffix", {"suffix"}, RemoveSuffix},
      {"upper", {}, Upper},
      {"lower", {}, Lower},
      {"capitalize", {}, Capitalize},
      {"title", {}, Title},
      {"replace", {"old", "new", "count"}, Replace},
      {"find", {"sub"}, Find},
      {"rfind", {"sub"}, RightFind},
      {"count", {"sub"}, Count},
      {"join", {"iterable"}, Join},
      {"isdigit", {}, IsDigit},
      {"isalpha", {}, IsAlpha},
      {"isspace", {}, IsSpace},
      {"splitlines", {"keepends"}, SplitLines},
  };
  return *methods;
}

}  // namespace lockstep::jinja
