#include "engine/tokenizer/byte_chars.h"

namespace lockstep {
namespace {

void AppendUtf8(int32_t code, std::string* out) {
  if (code < 0x80) {
    *out += static_cast<char>(code);
  } else {  // the alphabet ends at U+0143
    *out += static_cast<char>(0xC0 | (code >> 6));
    *out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

bool StandsForItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

std::array<int32_t, 256> Codes() {
  std::array<int32_t, 256> codes{};
  int32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) codes[byte] = StandsForItself(byte) ? byte : next++;
  return codes;
}

// Byte of a code point, or -1.
const std::array<int16_t, 0x144>& ByteOfCode() {
  static const auto* table = [] {
    auto* bytes = new std::array<int16_t, 0x144>();
    bytes->fill(-1);
    const auto codes = Codes();
    for (int byte = 0; byte < 256; ++byte) (*bytes)[codes[byte]] = static_cast<int16_t>(byte);
    return bytes;
  }();
  return *table;
}

}  // namespace

const std::array<std::string, 256>& ByteCharacters() {
  static const auto* characters = [] {
    auto* strings = new std::array<std::string, 256>();
    const auto codes = Codes();
    for (int byte = 0; byte < 256; ++byte) AppendUtf8(codes[byte], &(*strings)[byte]);
    return strings;
  }();
  return *characters;
}

std::string BytesOfToken(std::string_view token) {
  std::string bytes;
  for (std::string_view rest = token; !rest.empty();) {
    const Utf8Char c = DecodeUtf8(rest);
    if (c.code < 0 || c.code >= 0x144 || ByteOfCode()[c.code] < 0) return std::string(token);
    bytes += static_cast<char>(ByteOfCode()[c.code]);
    rest.remove_prefix(c.length);
  }
  return bytes;
}

std::string TokenOfBytes(std::string_view bytes) {
  std::string token;
  for (const char byte : bytes) token += ByteCharacters()[static_cast<unsigned char>(byte)];
  return token;
}

Utf8Char DecodeUtf8(std::string_view bytes) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return {first, 1, false};
  const int length = first >= 0xC2 && first <= 0xDF     ? 2
                     : (first >= 0xE0 && first <= 0xEF) ? 3
                     : (first >= 0xF0 && first <= 0xF4) ? 4
                                                        : 0;
  if (length == 0) return {-1, 1, false};
  int32_t code = first & (0x7F >> length);
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= bytes.size()) return {-1, i, true};
    // Table 3-7 of the Unicode standard: the second byte's range excludes overlong forms, surrogates and > U+10FFFF.
    const unsigned char low = i > 1 ? 0x80 : first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = i > 1 ? 0xBF : first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (byte(i) < low || byte(i) > high) return {-1, i, false};
    code = (code << 6) | (byte(i) & 0x3F);
  }
  return {code, length, false};
}

}  // namespace lockstep
