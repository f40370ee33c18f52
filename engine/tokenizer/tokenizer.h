// Hugging Face tokenizer.json: byte-level BPE (GPT-2, Llama 3, Qwen families). Text is cut at added tokens, normalised
// (NFC or not at all), cut by the pre-tokenizer's regular expression, turned into byte characters, and merged by rank.
//
//   auto tokenizer = Tokenizer::Load(model_dir);
//   auto ids = (*tokenizer)->Encode("Q: 12+34=");
//   std::string text = (*tokenizer)->Decode(*ids);
//
// The file is hostile until checked: a refusal is one line with file, place, value and limit. Immutable after Load and
// safe to share between threads.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_TOKENIZER_H_
#define LOCKSTEP_ENGINE_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

class Tokenizer {
 public:
  // DIR/tokenizer.json, and of DIR/tokenizer_config.json, where that exists, eos_token and pad_token, and add_bos_token
  // and add_eos_token, which take the post-processor's place.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& dir);
  // `path` is for messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(std::string_view json, const std::string& path);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Added tokens in the text ("<|endoftext|>") become their ids. Invalid UTF-8 is read as U+FFFD. INVALID_ARGUMENT when
  // the vocabulary has no token for a byte of the text. With add_special_tokens, the tokens that the post-processor
  // puts around a text (Llama 3's <|begin_of_text|>) come too: what tokenizer(text)["input_ids"] is in transformers.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special_tokens = false) const;
  // A text to be continued: the special tokens that go before it are added, except where it begins with them already (a
  // prompt whose template writes its own beginning of text gets no second one); those that go after it are not.
  absl::StatusOr<std::vector<int32_t>> EncodePrompt(std::string_view text) const;
  // The bytes of the tokens; a response cut inside a character ends in half of it (see ToValidUtf8). Unknown ids give
  // nothing.
  std::string Decode(const std::vector<int32_t>& ids, bool skip_special_tokens = false) const;
  // Bytes of one token; empty for an unknown id.
  const std::string& TokenBytes(int32_t id) const;
  bool IsSpecial(int32_t id) const;
  std::optional<int32_t> TokenToId(std::string_view token) const;

  // Largest id + 1. A model's vocab_size may be larger (padding), never smaller.
  int32_t vocab_size() const;
  // From tokenizer_config.json; -1: not given.
  int32_t eos_token_id() const;
  int32_t pad_token_id() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Turns a token stream into text, never emitting a part of a UTF-8 character: bytes that may still become one are kept
// back. Bytes that cannot are U+FFFD.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer* tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}
  // Text that is complete after this token; may be empty.
  std::string Push(int32_t id);
  // What is left at the end of the stream: "" or one U+FFFD.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;
};

// Every maximal invalid part replaced by U+FFFD, as Python's bytes.decode(errors="replace").
std::string ToValidUtf8(std::string_view bytes);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TOKENIZER_TOKENIZER_H_
