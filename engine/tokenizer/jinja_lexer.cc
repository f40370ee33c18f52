#include "engine/tokenizer/jinja_lexer.h"

#include <algorithm>
#include <cctype>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/tokenizer/byte_chars.h"
#include "engine/tokenizer/jinja_value.h"

namespace lockstep::jinja {
namespace {

constexpr size_t kMaxTokens = 200'000;

bool NameStart(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool NameChar(char c) { return NameStart(c) || std::isdigit(static_cast<unsigned char>(c)); }

// "\r\n" and "\r" become "\n"; one newline at the end goes.
std::string NormalLines(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

void AppendUtf8(std::string* out, uint32_t code) {
  if (code < 0x80) {
    *out += static_cast<char>(code);
  } else if (code < 0x800) {
    *out += static_cast<char>(0xC0 | code >> 6);
    *out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    *out += static_cast<char>(0xE0 | code >> 12);
    *out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    *out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    *out += static_cast<char>(0xF0 | code >> 18);
    *out += static_cast<char>(0x80 | (code >> 12 & 0x3F));
    *out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    *out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) {
      const absl::Status status = LexData();
      if (!status.ok()) return status;
      if (tokens_.size() > kMaxTokens) return TemplateError(line_, absl::StrCat("more than ", kMaxTokens, " tokens"));
    }
    tokens_.push_back({TokenType::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  bool Starts(std::string_view what) const { return source_.compare(at_, what.size(), what) == 0; }
  void Advance(size_t bytes) {
    line_ += static_cast<int>(
        std::count(source_.begin() + static_cast<long>(at_), source_.begin() + static_cast<long>(at_ + bytes), '\n'));
    at_ += bytes;
  }
  void SkipSpace() {
    while (at_ < source_.size()) {
      const Utf8Char c = DecodeUtf8(std::string_view(source_).substr(at_));
      if (!IsPythonSpace(c.code)) return;
      Advance(static_cast<size_t>(c.length));
    }
  }
  void Emit(TokenType type, std::string text) { tokens_.push_back({type, std::move(text), line_}); }

  // The text that ends at at_ + length, cut by what stands at the start of the tag there. `variable`: {{.
  void EmitData(size_t length, char sign, bool variable) {
    std::string_view text = std::string_view(source_).substr(at_, length);
    if (sign == '-') {
      while (!text.empty()) {
        size_t start = text.size() - 1;
        while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
        if (!IsPythonSpace(DecodeUtf8(text.substr(start)).code)) break;
        text = text.substr(0, start);
      }
    } else if (sign != '+' && !variable) {
      const size_t newline = text.rfind('\n');
      const size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
      if (begin > 0 || line_starting_) {
        std::string_view rest = text.substr(begin);
        while (!rest.empty() && IsPythonSpace(DecodeUtf8(rest).code)) {
          rest.remove_prefix(static_cast<size_t>(DecodeUtf8(rest).length));
        }
        if (rest.empty()) text = text.substr(0, begin);
      }
    }
    if (!text.empty()) Emit(TokenType::kData, std::string(text));
    Advance(length);
  }

  size_t FindTag() const {
    for (size_t i = at_; i + 1 < source_.size(); ++i) {
      if (source_[i] == '{' && (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) return i;
    }
    return std::string::npos;
  }

  absl::Status LexData() {
    const size_t tag = FindTag();
    if (tag == std::string::npos) {
      Emit(TokenType::kData, source_.substr(at_));
      Advance(source_.size() - at_);
      return absl::OkStatus();
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    EmitData(tag - at_, sign, kind == '{');
    const bool signed_tag = sign == '-' || sign == '+';
    const int begin_line = line_;
    Advance(signed_tag ? 3 : 2);
    if (kind == '#') return SkipComment();
    if (kind == '%' && LexRaw()) return raw_status_;
    Emit(kind == '{' ? TokenType::kVariableBegin : TokenType::kBlockBegin, "");
    return LexTag(kind, begin_line);
  }

  // After an end delimiter, which began `length` bytes before `end`: "-" swallows white space, a block's or comment's
  // end the newline after it.
  void CloseTag(size_t length, char sign, bool trims) {
    Advance(length);
    const size_t before = at_;
    if (sign == '-') {
      SkipSpace();
    } else if (trims && sign != '+' && at_ < source_.size() && source_[at_] == '\n') {
      Advance(1);
    }
    line_starting_ = at_ > before && source_[at_ - 1] == '\n';
  }

  absl::Status SkipComment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) return TemplateError(line_, "a comment {# has no end #}");
    const char sign = end > at_ ? source_[end - 1] : ' ';
    CloseTag(end + 2 - at_, sign, true);
    return absl::OkStatus();
  }

  // {% raw %} ... {% endraw %}: at_ is behind "{%". False: it is another block.
  bool LexRaw() {
    const size_t at = at_;
    const int line = line_;
    SkipSpace();
    if (!Starts("raw")) return Back(at, line);
    Advance(3);
    SkipSpace();
    char sign = ' ';
    if (Starts("-")) {
      sign = '-';
      Advance(1);
    }
    if (!Starts("%}")) return Back(at, line);
    CloseTag(2, sign, false);
    for (size_t end = source_.find("{%", at_); end != std::string::npos; end = source_.find("{%", end + 1)) {
      size_t i = end + 2;
      const char begin_sign = i < source_.size() ? source_[i] : ' ';
      if (begin_sign == '-' || begin_sign == '+') ++i;
      while (i < source_.size() && std::isspace(static_cast<unsigned char>(source_[i]))) ++i;
      if (source_.compare(i, 6, "endraw") != 0) continue;
      i += 6;
      while (i < source_.size() && std::isspace(static_cast<unsigned char>(source_[i]))) ++i;
      const char end_sign = i < source_.size() ? source_[i] : ' ';
      if (end_sign == '-' || end_sign == '+') ++i;
      if (source_.compare(i, 2, "%}") != 0) continue;
      EmitData(end - at_, begin_sign, false);
      CloseTag(i + 2 - at_, end_sign, true);
      raw_status_ = absl::OkStatus();
      return true;
    }
    raw_status_ = TemplateError(line, "a {% raw %} has no {% endraw %}");
    return true;
  }
  bool Back(size_t at, int line) {
    at_ = at;
    line_ = line;
    return false;
  }

  // True when the tag ends here, which it cannot inside of brackets.
  bool LexEnd(char kind) {
    if (!open_.empty()) return false;
    const std::string_view end = kind == '{' ? "}}" : "%}";
    const bool is_signed = Starts("-") || (kind == '%' && Starts("+"));
    if (source_.compare(at_ + (is_signed ? 1 : 0), 2, end) != 0) return false;
    Emit(kind == '{' ? TokenType::kVariableEnd : TokenType::kBlockEnd, "");
    CloseTag(is_signed ? 3 : 2, is_signed ? source_[at_] : ' ', kind == '%');
    return true;
  }

  absl::Status LexTag(char kind, int begin_line) {
    open_.clear();
    while (true) {
      SkipSpace();
      if (at_ >= source_.size())
        return TemplateError(begin_line, absl::StrCat("a tag {", std::string(1, kind), " has no end"));
      if (LexEnd(kind)) return absl::OkStatus();
      const char c = source_[at_];
      absl::Status status;
      if (NameStart(c)) {
        size_t end = at_;
        while (end < source_.size() && NameChar(source_[end])) ++end;
        Emit(TokenType::kName, source_.substr(at_, end - at_));
        at_ = end;
      } else if (std::isdigit(static_cast<unsigned char>(c))) {
        LexNumber();
      } else if (c == '\'' || c == '"') {
        status = LexString(c);
      } else {
        status = LexOperator();
      }
      if (!status.ok()) return status;
      if (tokens_.size() > kMaxTokens) return TemplateError(line_, absl::StrCat("more than ", kMaxTokens, " tokens"));
    }
  }

  size_t DigitsFrom(size_t i) const {
    while (i < source_.size() && (std::isdigit(static_cast<unsigned char>(source_[i])) ||
                                  (source_[i] == '_' && i + 1 < source_.size() &&
                                   std::isdigit(static_cast<unsigned char>(source_[i + 1]))))) {
      ++i;
    }
    return i;
  }

  void LexNumber() {
    size_t end = DigitsFrom(at_);
    bool is_float = false;
    const auto digit_at = [&](size_t i) {
      return i < source_.size() && std::isdigit(static_cast<unsigned char>(source_[i]));
    };
    if (end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      is_float = true;
      end = DigitsFrom(end + 1);
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const size_t sign = end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 1 : 0;
      if (digit_at(end + 1 + sign)) {
        is_float = true;
        end = DigitsFrom(end + 1 + sign);
      }
    }
    std::string digits = source_.substr(at_, end - at_);
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    Emit(is_float ? TokenType::kFloat : TokenType::kInteger, std::move(digits));
    at_ = end;
  }

  absl::Status LexString(char quote) {
    std::string out;
    size_t i = at_ + 1;
    while (i < source_.size() && source_[i] != quote) {
      if (source_[i] != '\\') {
        out += source_[i++];
        continue;
      }
      if (i + 1 >= source_.size()) break;
      const absl::Status status = LexEscape(&i, &out);
      if (!status.ok()) return status;
    }
    if (i >= source_.size()) return TemplateError(line_, "a string has no end");
    Emit(TokenType::kString, std::move(out));
    Advance(i + 1 - at_);
    return absl::OkStatus();
  }

  // At a backslash with a character behind it.
  absl::Status LexEscape(size_t* i, std::string* out) {
    const char c = source_[*i + 1];
    static constexpr std::string_view kFrom = "ntr\\'\"abfv";
    if (const size_t simple = kFrom.find(c); simple != std::string_view::npos) {
      *out += "\n\t\r\\'\"\a\b\f\v"[simple];
      *i += 2;
      return absl::OkStatus();
    }
    if (c == '\n') {
      *i += 2;
      return absl::OkStatus();
    }
    const bool octal = c >= '0' && c <= '7';
    if (c != 'x' && c != 'u' && c != 'U' && !octal) {
      if (c == 'N') return TemplateError(line_, "the escape \\N in a string is not supported");
      *out += '\\';
      *i += 1;
      return absl::OkStatus();
    }
    size_t at = *i + (octal ? 1 : 2);
    const size_t wanted = octal ? 3 : c == 'x' ? 2 : c == 'u' ? 4 : 8;
    uint32_t code = 0;
    size_t digits = 0;
    for (; digits < wanted && at < source_.size(); ++digits, ++at) {
      const char digit = source_[at];
      if (octal ? digit < '0' || digit > '7' : !std::isxdigit(static_cast<unsigned char>(digit))) break;
      const int value = digit <= '9' ? digit - '0' : (digit | 0x20) - 'a' + 10;
      code = code * (octal ? 8 : 16) + static_cast<uint32_t>(value);
    }
    if (!octal && digits < wanted) return TemplateError(line_, "a string has a \\x or \\u without its digits");
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
      return TemplateError(line_, "a string has a \\u that is no character");
    }
    AppendUtf8(out, code);
    *i = at;
    return absl::OkStatus();
  }

  absl::Status LexOperator() {
    static constexpr std::string_view kTwo[] = {"==", "!=", "<=", ">=", "//", "**"};
    for (const std::string_view two : kTwo) {
      if (!Starts(two)) continue;
      Emit(TokenType::kOperator, std::string(two));
      at_ += 2;
      return absl::OkStatus();
    }
    const char c = source_[at_];
    if (std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      const auto length = static_cast<size_t>(DecodeUtf8(std::string_view(source_).substr(at_)).length);
      return TemplateError(line_, absl::StrCat("unexpected '", Printable(source_.substr(at_, length)), "'"));
    }
    if (c == '(' || c == '[' || c == '{') open_ += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open_.empty() || open_.back() != c)
        return TemplateError(line_, absl::StrCat("unexpected '", std::string(1, c), "'"));
      open_.pop_back();
    }
    Emit(TokenType::kOperator, std::string(1, c));
    ++at_;
    return absl::OkStatus();
  }

  const std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the last tag ended in a newline, or there was none yet
  std::string open_;           // the closing brackets that are due
  std::vector<Token> tokens_;
  absl::Status raw_status_;
};

}  // namespace

absl::Status TemplateError(int line, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", std::string(what)));
}

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) { return Lexer(NormalLines(source)).Run(); }

}  // namespace lockstep::jinja
