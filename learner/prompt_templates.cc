#include "learner/prompt_templates.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/json.h"

namespace lockstep {
namespace {

struct Named {
  const char* name;
  const char* text;
};

constexpr Named kNamed[] = {
    {"none", "{prompt}"},
    {"r1_distill_qwen",
     "<｜begin▁of▁sentence｜><｜User｜>{prompt} Please reason step by step, and put your final answer within "
     "\\boxed{}.\n"
     "<｜Assistant｜><think>\n"},
    {"qwen_math",
     "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
     "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"},
    {"r1",
     "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
     "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
     "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
     "i.e., <think> reasoning process here </think> <answer> answer here </answer>.\nUser: {prompt}\nAssistant: "
     "<think>"},
};

}  // namespace

absl::StatusOr<PromptTemplate> PromptTemplate::Make(const std::string& value, const std::string& model_dir) {
  PromptTemplate result;
  result.text_ = value.empty() ? "{prompt}" : value;
  if (value == "chat") {
    auto chat = ChatTemplate::Load(model_dir);
    if (!chat.ok()) return chat.status();
    result.chat_ = *std::move(chat);
    return result;
  }
  for (const Named& named : kNamed) {
    if (value == named.name) result.text_ = named.text;
  }
  if (result.text_.find("{prompt}") == std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.prompt_template is '", Printable(value),
                     "'; it must hold {prompt}, or be one of chat, none, r1_distill_qwen, qwen_math, r1"));
  }
  return result;
}

absl::StatusOr<std::string> PromptTemplate::Text(const std::string& problem) const {
  if (chat_ != nullptr) return chat_->RenderUser(problem);
  return absl::StrReplaceAll(text_, {{"{prompt}", problem}});
}

absl::StatusOr<std::vector<int32_t>> PromptTemplate::Tokens(const Tokenizer& tokenizer,
                                                            const std::string& problem) const {
  const auto text = Text(problem);
  if (!text.ok()) return text.status();
  return chat_ != nullptr ? tokenizer.Encode(*text) : tokenizer.EncodePrompt(*text);
}

}  // namespace lockstep
