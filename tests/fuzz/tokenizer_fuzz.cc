// Any bytes as a tokenizer.json; what loads must encode, decode and stream the rest of the input.
//
// The input: a tokenizer.json, a zero byte, a text.
//
// fuzz sources: engine/base/json.cc engine/base/process.cc engine/tokenizer/added_tokens.cc
// fuzz sources: engine/tokenizer/bpe.cc engine/tokenizer/byte_chars.cc engine/tokenizer/post_processor.cc
// fuzz sources: engine/tokenizer/pre_tokenizer.cc engine/tokenizer/stream_decoder.cc
// fuzz sources: engine/tokenizer/tokenizer.cc
// fuzz libraries: -lpcre2-8 -lutf8proc -lpthread
// fuzz seeds: engine/tokenizer/testdata/*.tokenizer.json
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "engine/tokenizer/tokenizer.h"

namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

void Use(const lockstep::Tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.Encode(text, /*add_special_tokens=*/true);
  if (!ids.ok()) {
    Require(ids.status().message().find('\n') == absl::string_view::npos);
    return;
  }
  for (const int32_t id : *ids) Require(id >= 0 && id < tokenizer.vocab_size());
  const std::string whole = lockstep::ToValidUtf8(tokenizer.Decode(*ids));
  lockstep::StreamDecoder decoder(&tokenizer, /*skip_special_tokens=*/false);
  std::string streamed;
  for (const int32_t id : *ids) {
    const std::string part = decoder.Push(id);
    Require(lockstep::ToValidUtf8(part) == part);
    streamed += part;
  }
  Require(streamed + decoder.Finish() == whole);
  Require(tokenizer.EncodePrompt(text).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const std::string_view file = input.substr(0, zero);
  const std::string_view text = zero == std::string_view::npos ? "ab <e>\xF0\x9F" : input.substr(zero + 1);
  const auto tokenizer = lockstep::Tokenizer::FromJson(file, "t.json");
  if (!tokenizer.ok()) {
    const auto message = tokenizer.status().message();
    Require(message.find('\n') == absl::string_view::npos && message.size() < 1000);
    return 0;
  }
  Use(**tokenizer, text);
  return 0;
}
