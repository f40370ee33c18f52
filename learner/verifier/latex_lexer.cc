#include "learner/verifier/latex_lexer.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "learner/verifier/units.h"
#include "learner/verifier/value.h"

namespace lockstep {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '~'; }

struct Spelling {
  std::string_view from, to;
};

// Characters for which LaTeX has a command.
constexpr Spelling kCharacters[] = {
    {"\u2212", "-"},
    {"\u2013", "-"},
    {"\u00d7", "\\times "},
    {"\u00b7", "\\cdot "},
    {"\u22c5", "\\cdot "},
    {"\u00f7", "/"},
    {"\u221a", "\\sqrt "},
    {"\u03c0", "\\pi "},
    {"\u221e", "\\infty "},
    {"\u222a", "\\cup "},
    {"\u2264", "\\le "},
    {"\u2265", "\\ge "},
    {"\u2260", "\\ne "},
    {"\u00b1", "\\pm "},
    {"\u00b0", "\\degree "},
    {"\u2208", "\\in "},
    {"\u00b2", "^2"},
    {"\u00b3", "^3"},
    {"\u00bd", "\\frac12 "},
    {"\u00bc", "\\frac14 "},
    {"\u00be", "\\frac34 "},
    {"\u00a0", " "},
    {"\u202f", " "},
    {"\u2009", " "},
    {"\u20ac", "\\text{euro}"},
    {"\u03b8", "\\theta "},
    {"\u03b1", "\\alpha "},
    {"\u03b2", "\\beta "},
    {"\u2019", "'"},
    {"\u2248", "="},
    {"^{\\circ}", "\\degree "},
    {"^\\circ", "\\degree "},
    {"^{\\degree}", "\\degree "},
    {"^\\degree", "\\degree "},
    {"^{\\prime}", "'"},
};

constexpr Spelling kCommands[] = {
    {"dfrac", "frac"},    {"tfrac", "frac"},          {"cfrac", "frac"}, {"leq", "le"},       {"leqslant", "le"},
    {"geq", "ge"},        {"geqslant", "ge"},         {"neq", "ne"},     {"dbinom", "binom"}, {"tbinom", "binom"},
    {"arcsinh", "asinh"}, {"varnothing", "emptyset"}, {"varphi", "phi"}, {"iff", "="},
};
constexpr Spelling kSymbols[] = {
    {"cdot", "*"},     {"times", "*"},  {"ast", "*"},    {"div", "/"},    {"lbrace", "\\{"},
    {"rbrace", "\\}"}, {"langle", "("}, {"rangle", ")"}, {"lvert", "|"},  {"rvert", "|"},
    {"vert", "|"},     {"mid", "|"},    {"lt", "<"},     {"gt", ">"},     {"approx", "="},
    {"lbrack", "["},   {"rbrack", "]"}, {"colon", ":"},  {"lparen", "("}, {"rparen", ")"},
};
constexpr std::string_view kIgnored[] = {"left",  "right", "big",       "bigl",   "bigr",         "Big",       "Bigl",
                                         "Bigr",  "bigg",  "Bigg",      "middle", "displaystyle", "textstyle", "limits",
                                         "quad",  "qquad", "thinspace", "mathbf", "boldsymbol",   "mathit",    "bm",
                                         "boxed", "fbox",  "circ",      "hline",  "space"};
constexpr std::string_view kTextCommands[] = {"text",   "mbox",         "textrm", "textnormal", "textbf",
                                              "textit", "hbox",         "mathrm", "emph",       "textsf",
                                              "mathsf", "operatorname", "texttt"};

template <typename List>
bool In(const List& list, std::string_view word) {
  return std::find(std::begin(list), std::end(list), word) != std::end(list);
}

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return lower;
}

std::string OneSpelling(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const Spelling* found = nullptr;
    if (text[at] == '^' || static_cast<unsigned char>(text[at]) >= 0x80) {
      for (const Spelling& s : kCharacters) {
        if (text.compare(at, s.from.size(), s.from) == 0) {
          found = &s;
          break;
        }
      }
    }
    if (found != nullptr) {
      out += found->to;
      at += found->from.size();
    } else {
      out += text[at++];
    }
  }
  return out;
}

// "the two lines" and not "5x": letters and punctuation with a word of three letters that is no function.
bool IsWords(std::string_view text) {
  bool word = false;
  for (size_t at = 0; at < text.size();) {
    if (!IsLetter(text[at])) {
      if (!IsSpace(text[at]) && std::string_view(",.;:'-()").find(text[at]) == std::string_view::npos) return false;
      ++at;
      continue;
    }
    size_t end = at;
    while (end < text.size() && IsLetter(text[end])) ++end;
    const std::string run = Lower(text.substr(at, end - at));
    if (IsFunction(run) || run == "sqrt" || run == "infinity" || run == "inf") return false;
    word = word || run.size() >= 3;
    at = end;
  }
  return word;
}

class Lexer {
 public:
  Lexer(std::string_view text, bool commas_join) : text_(text), commas_join_(commas_join) {}

  std::vector<Token> Run() {
    Range(0, text_.size(), IsWords(text_), 0);
    return std::move(tokens_);
  }

 private:
  // Text groups nest no deeper than this; what is inside of deeper ones is read as mathematics.
  static constexpr int kMaxDepth = 8;

  void Push(TokenKind kind, std::string text) {
    if (kind == TokenKind::kText && !tokens_.empty() && tokens_.back().kind == TokenKind::kText) {
      std::string& last = tokens_.back().text;
      if (IsPlainWord(last) && IsPlainWord(text)) {
        last += " " + text;
        space_ = false;
        return;
      }
    }
    tokens_.push_back({kind, std::move(text), space_});
    space_ = false;
  }
  static bool IsPlainWord(std::string_view word) {
    return word != "or" && word != "and" && word != "%" && word != "degree" && word != "dollar";
  }

  void Range(size_t at, size_t end, bool words, int depth) {
    while (at < end) {
      const char c = text_[at];
      if (IsSpace(c) || c == '$') {
        space_ = space_ || c != '$';
        ++at;
      } else if (c == '\\') {
        at = Command(at, end, depth);
      } else if (IsDigit(c) || (c == '.' && at + 1 < end && IsDigit(text_[at + 1]))) {
        at = Number(at, end);
      } else if (IsLetter(c)) {
        at = words ? Words(at, end) : Letters(at, end);
      } else {
        at = Punctuation(at, end);
      }
    }
  }

  size_t Punctuation(size_t at, size_t end) {
    const char c = text_[at];
    const char next = at + 1 < end ? text_[at + 1] : '\0';
    if (c == '%') {
      Push(TokenKind::kText, "%");
    } else if ((c == '<' || c == '>') && next == '=') {
      Push(TokenKind::kCommand, c == '<' ? "le" : "ge");
      return at + 2;
    } else if (c == '*' && next == '*') {
      Push(TokenKind::kSymbol, "^");
      return at + 2;
    } else {
      brackets_ += (c == '(' || c == '[') - (c == ')' || c == ']');
      Push(TokenKind::kSymbol, std::string(1, c));
    }
    return at + 1;
  }

  size_t Command(size_t at, size_t end, int depth) {
    const size_t begin = at + 1;
    size_t stop = begin;
    while (stop < end && IsLetter(text_[stop])) ++stop;
    if (stop == begin) return Escape(at, end);
    std::string name(text_.substr(begin, stop - begin));
    size_t open = stop;
    while (open < end && text_[open] == ' ') ++open;
    const size_t close =
        open < end && text_[open] == '{' && (In(kTextCommands, name) || name == "begin" || name == "end")
            ? ClosingBrace(text_.substr(0, end), open)
            : std::string_view::npos;
    if (close != std::string_view::npos && (name == "begin" || name == "end")) {
      std::string environment(text_.substr(open + 1, close - open - 1));
      size_t after = close + 1;
      if (name == "begin" && environment == "array" && after < end && text_[after] == '{') {  // column layout
        const size_t layout = ClosingBrace(text_.substr(0, end), after);
        if (layout != std::string_view::npos) after = layout + 1;
      }
      Push(TokenKind::kCommand, name + ":" + environment);
      return after;
    }
    if (close != std::string_view::npos && depth < kMaxDepth) {
      const std::string function = Lower(text_.substr(open + 1, close - open - 1));
      if (IsFunction(function)) {
        Push(TokenKind::kCommand, function);
      } else {
        Range(open + 1, close, /*words=*/true, depth + 1);
      }
      return close + 1;
    }
    if (In(kIgnored, name) || In(kTextCommands, name)) {
      space_ = space_ || name == "quad" || name == "qquad" || name == "space";
      const bool invisible = (name == "left" || name == "right") && stop < end && text_[stop] == '.';
      return stop + (invisible ? 1 : 0);
    }
    if (name == "degree") {
      Push(TokenKind::kText, name);
      return stop;
    }
    for (const Spelling& s : kCommands) {
      if (s.from == name) name = s.to;
    }
    for (const Spelling& s : kSymbols) {
      if (s.from != name) continue;
      Push(TokenKind::kSymbol, std::string(s.to));
      return stop;
    }
    if (name == "=") {
      Push(TokenKind::kSymbol, name);
    } else {
      Push(TokenKind::kCommand, name);
    }
    return stop;
  }

  size_t Escape(size_t at, size_t end) {
    if (at + 1 >= end) return end;
    const char c = text_[at + 1];
    if (c == '{' || c == '}' || c == '\\') {
      brackets_ += (c == '{') - (c == '}');
      Push(TokenKind::kSymbol, std::string("\\") + c);
    } else if (c == '$') {
      Push(TokenKind::kText, "dollar");
    } else if (c == '%') {
      Push(TokenKind::kText, "%");
    } else if (c == '|') {
      Push(TokenKind::kSymbol, "|");
    } else if (c != '!') {
      space_ = true;  // \, \; \: \> and the math delimiters
    }
    return at + 2;
  }

  // Bytes of a thousands separator at `at` that a group of exactly three digits follows; 0: none.
  size_t Separator(size_t at, size_t end) const {
    size_t after = at;
    const auto skip = [&](std::string_view part) {
      if (text_.compare(after, part.size(), part) != 0 || after + part.size() > end) return false;
      after += part.size();
      return true;
    };
    bool sure = false;
    if (skip("{,}") || skip("{,\\!}")) {
      sure = true;
    } else if (skip("\\,") || skip("\\ ") || skip("~") || skip("\\;")) {
    } else if (skip(",")) {
      while (skip("\\!")) sure = true;
      if (!sure && (!commas_join_ || brackets_ > 0)) return 0;
    } else if (!skip(" ")) {
      return 0;
    }
    while (sure && skip(" ")) {
    }
    size_t digits = 0;
    while (after + digits < end && IsDigit(text_[after + digits])) ++digits;
    if (digits != 3) return 0;
    if (text_[at] == ' ' && after + 3 < end && text_[after + 3] == '/') return 0;  // "1 501/502" is mixed
    return after - at;
  }

  size_t Number(size_t at, size_t end) {
    const size_t n = tokens_.size();
    // \frac12 has two arguments of one digit.
    if (n > 0 && text_[at] != '.' &&
        (tokens_[n - 1].Command("frac") ||
         (n > 1 && tokens_[n - 2].Command("frac") && tokens_[n - 1].kind == TokenKind::kNumber))) {
      Push(TokenKind::kNumber, std::string(1, text_[at]));
      return at + 1;
    }
    std::string number;
    const auto digits = [&] {
      while (at < end && IsDigit(text_[at])) number += text_[at++];
    };
    digits();
    if (!number.empty() && number.size() <= 3) {
      for (size_t gap = Separator(at, end); gap > 0; gap = Separator(at, end)) {
        at += gap;
        digits();
      }
    }
    if (at + 1 < end && text_[at] == '.' && IsDigit(text_[at + 1])) {
      number += text_[at++];
      digits();
    }
    if (const size_t exponent = Exponent(at, end); exponent > 0) {
      number += text_.substr(at, exponent);
      at += exponent;
    }
    Push(TokenKind::kNumber, std::move(number));
    return at;
  }

  // e[+-]N of 1 to 3 digits that neither digit nor letter follows.
  size_t Exponent(size_t at, size_t end) const {
    if (at >= end || (text_[at] != 'e' && text_[at] != 'E')) return 0;
    size_t n = 1;
    if (at + n < end && (text_[at + n] == '-' || text_[at + n] == '+')) ++n;
    const size_t begin = n;
    while (at + n < end && IsDigit(text_[at + n])) ++n;
    if (n == begin || n - begin > 3 || (at + n < end && IsLetter(text_[at + n]))) return 0;
    return n;
  }

  // Words of a text: one token, in lower case, single spaces, without points ("p.m." is "pm"); "or" and "and" apart.
  size_t Words(size_t at, size_t end) {
    std::string word, words;
    const auto flush = [&](bool all) {
      const bool joins = word == "or" || word == "and";
      if (!joins && !word.empty()) words += (words.empty() ? "" : " ") + word;
      if ((joins || all) && !words.empty()) {
        if (words.size() == 1) {
          Push(TokenKind::kLetter, words);
        } else {
          Push(TokenKind::kText, Lower(words));
        }
        words.clear();
      }
      if (joins) Push(TokenKind::kText, word);
      word.clear();
    };
    for (; at < end; ++at) {
      const char c = text_[at];
      if (IsLetter(c)) {
        word += c;
      } else if (IsSpace(c) || c == '-') {
        flush(false);
      } else if (c != '.' && c != '\'') {
        break;
      }
    }
    flush(true);
    return at;
  }

  // Letters within mathematics: a function, a unit behind a number, a word, or a product of variables.
  size_t Letters(size_t at, size_t end) {
    const size_t begin = at;
    while (at < end && IsLetter(text_[at])) ++at;
    const std::string run(text_.substr(begin, at - begin));
    const std::string lower = Lower(run);
    const bool after_value = !tokens_.empty() && (tokens_.back().kind == TokenKind::kNumber ||
                                                  tokens_.back().Symbol("}") || tokens_.back().Symbol(")"));
    if (IsFunction(run) || run == "sqrt" || run == "pi") {
      Push(TokenKind::kCommand, run);
    } else if (lower == "inf" || lower == "infinity" || run == "oo") {
      Push(TokenKind::kCommand, "infty");
    } else if (run == "U" && !tokens_.empty() && (tokens_.back().Symbol(")") || tokens_.back().Symbol("]"))) {
      Push(TokenKind::kCommand, "cup");
    } else if (lower == "or" || lower == "and" || run.size() >= 4 ||
               (after_value && (lower == "am" || lower == "pm")) ||
               (run.size() >= 2 && after_value && !KnownUnit(lower).empty()) ||
               (!tokens_.empty() && tokens_.back().kind == TokenKind::kText && run.size() >= 2)) {
      Push(TokenKind::kText, lower);
      if (at + 1 < end && text_[at] == '.' && IsSpace(text_[at + 1])) ++at;  // "sq. units"
    } else {
      for (const char c : run) Push(TokenKind::kLetter, std::string(1, c));
    }
    return at;
  }

  std::string_view text_;
  bool commas_join_;
  std::vector<Token> tokens_;
  bool space_ = false;
  int64_t brackets_ = 0;
};

}  // namespace

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

std::vector<Token> Lex(std::string_view text, bool commas_join) {
  const std::string spelled = OneSpelling(text);
  return Lexer(spelled, commas_join).Run();
}

}  // namespace lockstep
