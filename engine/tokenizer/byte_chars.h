// UTF-8 and GPT-2's byte alphabet: every byte has one printable character that stands for it in vocabularies.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_BYTE_CHARS_H_
#define LOCKSTEP_ENGINE_TOKENIZER_BYTE_CHARS_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace lockstep {

// UTF-8 of the character that stands for a byte: printable Latin-1 stands for itself, the others for U+0100 upwards.
const std::array<std::string, 256>& ByteCharacters();

// The bytes that a vocabulary entry stands for. An entry with a character outside the alphabet stands for its own
// UTF-8.
std::string BytesOfToken(std::string_view token);
// The vocabulary form of bytes.
std::string TokenOfBytes(std::string_view bytes);

struct Utf8Char {
  int32_t code = -1;       // -1: not a character
  int length = 0;          // bytes; of an invalid part: how many belong to it (>= 1)
  bool truncated = false;  // the input ended inside what could still become a character
};
// The character at the start of `bytes` (not empty). Overlong forms, surrogates and values above U+10FFFF are invalid.
Utf8Char DecodeUtf8(std::string_view bytes);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TOKENIZER_BYTE_CHARS_H_
