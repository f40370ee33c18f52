#include "learner/verifier/math_answer.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "learner/verifier/number.h"

namespace lockstep {
namespace {

constexpr size_t kMaxAnswerBytes = 4096;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

// Position of the brace that closes the one at `open`; npos where there is none.
size_t ClosingBrace(std::string_view text, size_t open) {
  int64_t depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;  // \{ and \} are no groups
    } else if (text[i] == '{') {
      ++depth;
    } else if (text[i] == '}' && --depth == 0) {
      return i;
    }
  }
  return std::string_view::npos;
}

// What the command at `at` (of `length` bytes) applies to: {...} or the next word.
std::optional<std::string> Argument(std::string_view text, size_t at, size_t length) {
  size_t open = at + length;
  while (open < text.size() && text[open] == ' ') ++open;
  if (open >= text.size()) return std::nullopt;
  if (text[open] != '{') {
    const size_t end = std::min(text.find_first_of(" $\n", open), text.size());
    return std::string(text.substr(open, end - open));
  }
  const size_t close = ClosingBrace(text, open);
  if (close == std::string_view::npos) return std::nullopt;
  return std::string(text.substr(open + 1, close - open - 1));
}

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return lower;
}

void RemoveAll(std::string* text, std::string_view part) {
  std::string out;
  for (size_t at = 0; at < text->size();) {
    const bool found = text->compare(at, part.size(), part) == 0;
    // \left must not eat the beginning of \leftarrow.
    const size_t after = at + part.size();
    const bool word = IsLetter(part.back()) && after < text->size() && IsLetter((*text)[after]);
    if (found && !word) {
      at = after;
    } else {
      out += (*text)[at++];
    }
  }
  *text = std::move(out);
}

void ReplaceAll(std::string* text, std::string_view from, std::string_view to) {
  std::string out;
  for (size_t at = 0; at < text->size();) {
    if (text->compare(at, from.size(), from) == 0) {
      out += to;
      at += from.size();
    } else {
      out += (*text)[at++];
    }
  }
  *text = std::move(out);
}

// \text{A} alone is its content; behind a value ("5\text{ cm}") it is a unit and falls away.
std::string DropText(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    size_t command = 0;
    for (const std::string_view name : {"\\text{", "\\mathrm{", "\\textbf{", "\\mbox{"}) {
      if (text.compare(at, name.size(), name) == 0) command = name.size();
    }
    const size_t close = command > 0 ? ClosingBrace(text, at + command - 1) : std::string::npos;
    if (close == std::string::npos) {
      out += text[at++];
      continue;
    }
    if (out.empty()) out += text.substr(at + command, close - at - command);
    at = close + 1;
  }
  return out;
}

// \frac12 and \frac1{2} become \frac{1}{2}; \sqrt2 becomes \sqrt{2}.
std::string AddBraces(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const bool frac = text.compare(at, 5, "\\frac") == 0;
    const bool sqrt = text.compare(at, 5, "\\sqrt") == 0;
    if (!frac && !sqrt) {
      out += text[at++];
      continue;
    }
    out += text.substr(at, 5);
    at += 5;
    for (int argument = 0; argument < (frac ? 2 : 1) && at < text.size(); ++argument) {
      if (IsDigit(text[at]) || IsLetter(text[at])) {
        out += std::string("{") + text[at++] + "}";
        continue;
      }
      const size_t close = text[at] == '{' ? ClosingBrace(text, at) : std::string::npos;
      if (close == std::string::npos || text.find("\\frac", at) < close || text.find("\\sqrt", at) < close) break;
      out += text.substr(at, close + 1 - at);
      at = close + 1;
    }
  }
  return out;
}

// -?\frac{a}{b} as "a/b"; others unchanged.
std::string FractionAsQuotient(const std::string& text) {
  const bool negative = !text.empty() && text[0] == '-';
  const size_t at = negative ? 1 : 0;
  if (text.compare(at, 6, "\\frac{") != 0) return text;
  const size_t middle = ClosingBrace(text, at + 5);
  if (middle == std::string::npos || middle + 1 >= text.size() || text[middle + 1] != '{') return text;
  const size_t close = ClosingBrace(text, middle + 1);
  if (close != text.size() - 1) return text;
  const std::string above = text.substr(at + 6, middle - at - 6);
  if (negative && !above.empty() && above[0] == '-') return text;
  return (negative ? "-" : "") + above + "/" + text.substr(middle + 2, close - middle - 2);
}

}  // namespace

std::optional<std::string> ExtractAnswer(std::string_view text) {
  // From the last command backwards, so that an unbalanced one does not hide a good one before it; each is scanned to
  // the end of the text at most, and only a few are tried.
  size_t end = text.size();
  for (int attempt = 0; attempt < 8; ++attempt) {
    const std::string_view head = text.substr(0, end);
    const size_t boxed = head.rfind("\\boxed");
    const size_t framed = head.rfind("\\fbox");
    if (boxed == std::string_view::npos && framed == std::string_view::npos) break;
    const bool is_box = framed == std::string_view::npos || (boxed != std::string_view::npos && boxed > framed);
    end = is_box ? boxed : framed;
    const auto content = Argument(text, end, is_box ? 6 : 5);
    if (content) return content;
  }
  const std::string lower = Lower(text);
  size_t begin = std::string::npos;
  for (const std::string_view phrase : {"answer is", "answer:"}) {
    const size_t at = lower.rfind(phrase);
    if (at == std::string::npos) continue;
    if (begin == std::string::npos || at + phrase.size() > begin) begin = at + phrase.size();
  }
  if (begin == std::string::npos) return std::nullopt;
  if (begin < text.size() && text[begin] == ':') ++begin;
  const std::string_view line = text.substr(begin, text.find('\n', begin) - begin);
  return std::string(Trim(line));
}

std::string NormalizeAnswer(std::string_view text) {
  std::string out = DropText(std::string(Trim(text)));
  for (const std::string_view part : {"\\left", "\\right", "\\!", "\\,", "\\;", "\\:", "\\ ", "\\$", "$", "^{\\circ}",
                                      "^\\circ", "\\%", "%", "\\displaystyle", "\\(", "\\)", "\\[", "\\]"}) {
    RemoveAll(&out, part);
  }
  ReplaceAll(&out, "\\dfrac", "\\frac");
  ReplaceAll(&out, "\\tfrac", "\\frac");
  ReplaceAll(&out, "\\cdot", "*");
  for (const std::string_view space : {" ", "\t", "\r", "\n", "~"}) RemoveAll(&out, space);
  while (!out.empty() && (out.back() == '.' || out.back() == ',')) out.pop_back();
  const size_t equals = out.find('=');  // "x = 5" answers 5
  if (equals == 1 && IsLetter(out[0]) && out.size() > 2) out.erase(0, 2);
  out = AddBraces(out);
  return out;
}

bool SameAnswer(std::string_view a, std::string_view b) {
  // Normalising nested commands is quadratic, and no answer is that long.
  if (a.size() > kMaxAnswerBytes || b.size() > kMaxAnswerBytes) return false;
  const std::string left = NormalizeAnswer(a);
  const std::string right = NormalizeAnswer(b);
  if (left.empty() || right.empty()) return false;
  if (left == right) return true;
  const auto x = ParseNumber(FractionAsQuotient(left));
  const auto y = ParseNumber(FractionAsQuotient(right));
  return x && y && Equal(*x, *y);
}

}  // namespace lockstep
