// Bytes to text: StreamDecoder and ToValidUtf8 of tokenizer.h.
#include "engine/tokenizer/byte_chars.h"
#include "engine/tokenizer/tokenizer.h"

namespace lockstep {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD

// Moves what is decided from `bytes` to the result; a tail that may still become a character stays.
std::string TakeComplete(std::string* bytes) {
  std::string out;
  size_t at = 0;
  while (at < bytes->size()) {
    const Utf8Char c = DecodeUtf8(std::string_view(*bytes).substr(at));
    if (c.truncated) break;
    if (c.code < 0) {
      out += kReplacement;
    } else {
      out.append(*bytes, at, c.length);
    }
    at += c.length;
  }
  bytes->erase(0, at);
  return out;
}

}  // namespace

std::string StreamDecoder::Push(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return "";
  pending_ += tokenizer_->TokenBytes(id);
  return TakeComplete(&pending_);
}

std::string StreamDecoder::Finish() {
  const bool cut = !pending_.empty();
  pending_.clear();
  return cut ? kReplacement : "";
}

std::string ToValidUtf8(std::string_view bytes) {
  std::string rest(bytes);
  std::string out = TakeComplete(&rest);
  if (!rest.empty()) out += kReplacement;
  return out;
}

}  // namespace lockstep
