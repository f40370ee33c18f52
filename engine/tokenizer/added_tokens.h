// Added tokens ("<|endoftext|>"): cut out of the text as wholes before anything else looks at it.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_ADDED_TOKENS_H_
#define LOCKSTEP_ENGINE_TOKENIZER_ADDED_TOKENS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // swallows white space before it
  bool rstrip = false;       // swallows white space after it
};

struct AddedSection {
  int32_t id = -1;  // -1: plain text
  std::string_view text;
};

class AddedTokens {
 public:
  void Add(AddedToken token);
  // Leftmost-longest matches and the text between them, in order.
  std::vector<AddedSection> Cut(std::string_view text) const;

 private:
  const AddedToken* Match(std::string_view text, size_t at) const;
  std::vector<AddedToken> by_first_byte_[256];  // each list: longest first
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TOKENIZER_ADDED_TOKENS_H_
