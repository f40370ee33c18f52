// The chat template of a model folder: how a conversation becomes the text that the model was trained on. Our own
// engine for the part of Jinja2 that docs/tokenizer.md lists, which covers the Qwen2, Qwen2.5, Qwen3,
// DeepSeek-R1-Distill and Llama 3 families; it renders as transformers' apply_chat_template does. What is outside of it
// is refused by name at load.
//
//   auto chat = ChatTemplate::Load(model_dir);
//   std::string prompt = (*chat)->RenderUser("What is 2+2?").value();
//
// A template is a program from a stranger's file: steps, memory, output and nesting are bounded. Immutable after Load
// and safe to share between threads.
#ifndef LOCKSTEP_ENGINE_TOKENIZER_CHAT_TEMPLATE_H_
#define LOCKSTEP_ENGINE_TOKENIZER_CHAT_TEMPLATE_H_

#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

struct ChatTemplateLimits {
  int64_t steps = 5'000'000;                 // expressions, statements and comparisons
  int64_t value_bytes = int64_t{256} << 20;  // of all values made on the way
  size_t output_bytes = size_t{16} << 20;
};

class ChatTemplate {
 public:
  // DIR/chat_template.jinja, else chat_template of DIR/tokenizer_config.json (a string, or a list in which the one
  // named "default" counts). NOT_FOUND when the folder has none. bos_token and the other special tokens come from
  // tokenizer_config.json.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::string& dir);
  // `path` is for messages; special_tokens_json is an object such as {"bos_token": "<s>"}.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source, const std::string& path,
                                                             std::string_view special_tokens_json = "{}");
  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;
  ChatTemplate& operator=(const ChatTemplate&) = delete;

  // The problem as the only message, of the user, with add_generation_prompt.
  absl::StatusOr<std::string> RenderUser(std::string_view content) const;
  // With the variables of a JSON object: messages, add_generation_prompt, tools, and what else the template reads.
  // `now` is what strftime_now tells; without it the function is undefined, so that a prompt does not depend on the
  // day.
  absl::StatusOr<std::string> RenderJson(std::string_view variables, const std::optional<std::tm>& now = std::nullopt,
                                         const ChatTemplateLimits& limits = {}) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_TOKENIZER_CHAT_TEMPLATE_H_
