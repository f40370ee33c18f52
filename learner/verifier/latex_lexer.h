// Mathematical text (LaTeX, or what people type instead of it) as tokens in one spelling.
#ifndef LOCKSTEP_LEARNER_VERIFIER_LATEX_LEXER_H_
#define LOCKSTEP_LEARNER_VERIFIER_LATEX_LEXER_H_

#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

enum class TokenKind {
  kNumber,   // digits and a point, without thousands separators: "10080", ".5"
  kLetter,   // one letter
  kCommand,  // name without backslash: "frac" (also of \dfrac and \tfrac), "sqrt", "begin:pmatrix", "pi", "sin", ...
  kText,     // words in lower case: "square cm"; "%" and "degree" and "dollar" of signs; "or", "and"
  kSymbol,   // "(", "{", "\\{", "^", "\\\\" (row end), ...
};

struct Token {
  TokenKind kind;
  std::string text;
  bool space_before = false;
  bool operator==(const Token& other) const { return kind == other.kind && text == other.text; }
  bool Is(TokenKind k, std::string_view t) const { return kind == k && text == t; }
  bool Symbol(std::string_view t) const { return Is(TokenKind::kSymbol, t); }
  bool Command(std::string_view t) const { return Is(TokenKind::kCommand, t); }
};

// Any bytes; linear time. What has no meaning in an answer is gone: \left, thin spaces, $, \displaystyle.
// `commas_join`: "1,234" outside of brackets is one number; else it is a list (",\!" and "{,}" always join).
std::vector<Token> Lex(std::string_view text, bool commas_join);

// Position of the brace that closes the one at `open`; npos where there is none.
size_t ClosingBrace(std::string_view text, size_t open);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_VERIFIER_LATEX_LEXER_H_
