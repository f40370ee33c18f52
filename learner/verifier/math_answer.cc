#include "learner/verifier/math_answer.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "learner/verifier/answer.h"
#include "learner/verifier/latex_lexer.h"

namespace lockstep {
namespace {

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

std::string_view TrimAny(std::string_view text, std::string_view characters) {
  const size_t begin = text.find_first_not_of(characters);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(characters) - begin + 1);
}

bool Same(std::string_view a, std::string_view b, bool commas_join) {
  const std::vector<Token> x = Lex(a, commas_join), y = Lex(b, commas_join);
  if (x.empty() || y.empty()) return false;
  return x == y || SameAnswers(ParseAnswer(x), ParseAnswer(y));
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
  for (const std::string_view phrase : {"answer is", "answer:", "answer**:", "####"}) {
    const size_t at = lower.rfind(phrase);
    if (at == std::string::npos) continue;
    if (begin == std::string::npos || at + phrase.size() > begin) begin = at + phrase.size();
  }
  if (begin == std::string::npos) return std::nullopt;
  if (begin < text.size() && text[begin] == ':') ++begin;
  const std::string_view line = text.substr(begin, text.find('\n', begin) - begin);
  return std::string(TrimAny(line, " \t\r\n*"));
}

bool SameAnswer(std::string_view a, std::string_view b) {
  if (a.size() > kMaxAnswerBytes || b.size() > kMaxAnswerBytes) return false;
  if (Same(a, b, /*commas_join=*/true)) return true;
  // "100,200" is a number or a list.
  const bool commas = a.find(',') != std::string_view::npos && b.find(',') != std::string_view::npos;
  return commas && Same(a, b, /*commas_join=*/false);
}

}  // namespace lockstep
