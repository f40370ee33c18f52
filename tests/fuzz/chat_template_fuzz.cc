// Any bytes as a chat template: it is refused, or renders within its limits, or fails in one line.
//
// The input: a template, and after a zero byte, if there is one, the variables as JSON.
//
// fuzz sources: engine/base/json.cc engine/base/process.cc engine/tokenizer/byte_chars.cc
// fuzz sources: engine/tokenizer/chat_template.cc engine/tokenizer/stream_decoder.cc
// fuzz sources: engine/tokenizer/tokenizer.cc engine/tokenizer/bpe.cc engine/tokenizer/added_tokens.cc
// fuzz sources: engine/tokenizer/pre_tokenizer.cc engine/tokenizer/post_processor.cc
// fuzz sources: engine/tokenizer/jinja_builtins.cc engine/tokenizer/jinja_calls.cc
// fuzz sources: engine/tokenizer/jinja_expressions.cc engine/tokenizer/jinja_filters.cc
// fuzz sources: engine/tokenizer/jinja_interpreter.cc engine/tokenizer/jinja_lexer.cc
// fuzz sources: engine/tokenizer/jinja_parser.cc engine/tokenizer/jinja_print.cc
// fuzz sources: engine/tokenizer/jinja_strings.cc engine/tokenizer/jinja_value.cc
// fuzz libraries: -lpcre2-8 -lutf8proc -lpthread
// fuzz seeds: tests/fuzz/seeds/chat_template/*.jinja
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "engine/tokenizer/chat_template.h"

namespace {

constexpr char kVariables[] =
    R"({"messages": [{"role": "system", "content": " s "}, {"role": "user", "content": "a é 日 <think>x</think>"},
     {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}],
     "add_generation_prompt": true, "tools": [{"name": "f", "n": 1.5}], "n": 3})";

void Require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const std::string_view variables = zero == std::string_view::npos ? kVariables : input.substr(zero + 1);
  const auto chat = lockstep::ChatTemplate::Parse(input.substr(0, zero), "t.jinja", R"({"bos_token": "<s>"})");
  absl::Status status = chat.status();
  if (chat.ok()) {
    const lockstep::ChatTemplateLimits limits = {.steps = 20'000, .value_bytes = 1 << 20, .output_bytes = 1 << 16};
    const auto text = (*chat)->RenderJson(variables, std::nullopt, limits);
    status = text.status();
    if (text.ok()) Require(text->size() <= limits.output_bytes);
  }
  Require(status.message().find('\n') == absl::string_view::npos);
  Require(status.message().size() < 1000);
  return 0;
}
