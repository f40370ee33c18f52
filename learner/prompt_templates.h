// What data.prompt_template may be, and the prompt that it makes of a problem.
//
//   ""  or "none"      the problem as it is
//   "chat"             the model's own chat template: the problem as the user's message, and the opening of an answer
//   "r1_distill_qwen"  DeepSeek-R1-Distill-Qwen's, as in the paper's sanity test
//   "qwen_math"        Qwen2.5-Math's, as in the paper's LoRA experiment
//   "r1"               for base models, as in the paper's OctoThinker experiment
//   other text         {prompt} stands for the problem
//
// The texts of the last three names are those of the paper's code (arXiv 2510.26788).
#ifndef LOCKSTEP_LEARNER_PROMPT_TEMPLATES_H_
#define LOCKSTEP_LEARNER_PROMPT_TEMPLATES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"

namespace lockstep {

class PromptTemplate {
 public:
  // model_dir is read for "chat" only.
  static absl::StatusOr<PromptTemplate> Make(const std::string& value, const std::string& model_dir);

  absl::StatusOr<std::string> Text(const std::string& problem) const;
  // The token ids of Text. A chat template writes its own special tokens; for the others those that the tokenizer puts
  // around a text are added, except where the text begins with them already.
  absl::StatusOr<std::vector<int32_t>> Tokens(const Tokenizer& tokenizer, const std::string& problem) const;

 private:
  std::string text_;  // with {prompt}
  std::unique_ptr<ChatTemplate> chat_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_PROMPT_TEMPLATES_H_
