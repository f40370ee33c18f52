// Cuts a chat template into tokens, with Jinja2's white-space rules as transformers sets them: trim_blocks,
// lstrip_blocks, "-" and "+" at a tag's edges, one newline at the end of the template dropped.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_JINJA_LEXER_H_
#define LOCKSTEP_ENGINE_TOKENIZER_JINJA_LEXER_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace lockstep::jinja {

enum class TokenType {
  kData,  // text between tags
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,  // unescaped
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenType type = TokenType::kEnd;
  std::string text;
  int line = 1;
};

// "line 12: ..." for errors. The last token is kEnd.
absl::Status TemplateError(int line, std::string_view what);
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace lockstep::jinja

#endif  // LOCKSTEP_ENGINE_TOKENIZER_JINJA_LEXER_H_
