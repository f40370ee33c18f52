#include "engine/tokenizer/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "engine/tokenizer/byte_chars.h"

namespace lockstep {
namespace {

// Start of the last character before `end`; text is valid UTF-8 and end > 0.
size_t PreviousStart(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool IsSpace(int32_t code) {
  if (code == ' ' || (code >= '\t' && code <= '\r') || code == 0x85) return true;
  const auto category = utf8proc_category(code);
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

// \w of Unicode: alphabetic, marks, decimal numbers, connector punctuation, joiners.
bool IsWord(int32_t code) {
  if (code == 0x200C || code == 0x200D) return true;
  if ((code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
      (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189)) {
    return true;  // letters in circles and squares
  }
  switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

bool TouchesWord(std::string_view text, size_t begin, size_t end) {
  return (begin > 0 && IsWord(DecodeUtf8(text.substr(PreviousStart(text, begin))).code)) ||
         (end < text.size() && IsWord(DecodeUtf8(text.substr(end)).code));
}

}  // namespace

void AddedTokens::Add(AddedToken token) {
  auto& list = by_first_byte_[static_cast<unsigned char>(token.content[0])];
  const auto at = std::find_if(list.begin(), list.end(),
                               [&](const AddedToken& other) { return other.content.size() < token.content.size(); });
  list.insert(at, std::move(token));
}

const AddedToken* AddedTokens::Match(std::string_view text, size_t at) const {
  for (const AddedToken& token : by_first_byte_[static_cast<unsigned char>(text[at])]) {
    if (text.compare(at, token.content.size(), token.content) != 0) continue;
    return &token;
  }
  return nullptr;
}

std::vector<AddedSection> AddedTokens::Cut(std::string_view text) const {
  std::vector<AddedSection> sections;
  size_t begin = 0;  // of the plain text so far
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = Match(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    if (token->single_word && TouchesWord(text, at, at + token->content.size())) {
      at += token->content.size();  // passed over whole, as `tokenizers` does
      continue;
    }
    size_t start = at;
    size_t end = at + token->content.size();
    while (token->lstrip && start > begin && IsSpace(DecodeUtf8(text.substr(PreviousStart(text, start))).code)) {
      start = PreviousStart(text, start);
    }
    while (token->rstrip && end < text.size() && IsSpace(DecodeUtf8(text.substr(end)).code)) {
      end += DecodeUtf8(text.substr(end)).length;
    }
    if (start > begin) sections.push_back({-1, text.substr(begin, start - begin)});
    sections.push_back({token->id, text.substr(start, end - start)});
    begin = at = end;
  }
  if (begin < text.size()) sections.push_back({-1, text.substr(begin)});
  return sections;
}

}  // namespace lockstep
