#include "learner/prompt_templates.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace lockstep {
namespace {

std::string TextOf(const std::string& value, const std::string& problem) {
  const auto prompt = PromptTemplate::Make(value, "/nonexistent");
  if (!prompt.ok()) return std::string(prompt.status().message());
  return prompt->Text(problem).value();
}

TEST(PromptTemplate, NamedTextsAreThePapers) {
  EXPECT_EQ(TextOf("none", "1+1"), "1+1");
  EXPECT_EQ(TextOf("", "1+1"), "1+1");
  EXPECT_EQ(
      TextOf("r1_distill_qwen", "1+1"),
      "<｜begin▁of▁sentence｜><｜User｜>1+1 Please reason step by step, and put your final answer within \\boxed{}."
      "\n<｜Assistant｜><think>\n");
  EXPECT_EQ(TextOf("qwen_math", "1+1"),
            "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
            "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(TextOf("r1", "1+1").substr(TextOf("r1", "1+1").find("\nUser")), "\nUser: 1+1\nAssistant: <think>");
}

TEST(PromptTemplate, TextStandsAroundTheProblemAndTheProblemIsNoTemplate) {
  EXPECT_EQ(TextOf("Q: {prompt}=", "{prompt}"), "Q: {prompt}=");
  EXPECT_EQ(
      TextOf("Q: ", "1"),
      "data.prompt_template is 'Q: '; it must hold {prompt}, or be one of chat, none, r1_distill_qwen, qwen_math, r1");
}

class ModelFolder : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/prompt_templates.XXXXXX";
    ASSERT_NE(mkdtemp(dir_.data()), nullptr);
    std::ofstream(dir_ + "/tokenizer.json") << R"({
      "added_tokens": [{"id": 3, "content": "<s>", "special": true}],
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "decoder": {"type": "ByteLevel"},
      "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}},
      "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})";
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  std::vector<int32_t> Tokens(const std::string& value, const std::string& problem) {
    const auto prompt = PromptTemplate::Make(value, dir_);
    EXPECT_TRUE(prompt.ok()) << prompt.status();
    const auto tokenizer = Tokenizer::Load(dir_);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return prompt->Tokens(**tokenizer, problem).value();
  }
  std::string dir_;
};

TEST_F(ModelFolder, TheBeginningOfTextComesOnce) {
  EXPECT_EQ(Tokens("none", "ab"), (std::vector<int32_t>{3, 2}));
  EXPECT_EQ(Tokens("<s>b{prompt}", "ab"), (std::vector<int32_t>{3, 1, 2}));
}

TEST_F(ModelFolder, ChatIsTheModelsOwnTemplate) {
  EXPECT_EQ(PromptTemplate::Make("chat", dir_).status().code(), absl::StatusCode::kNotFound);
  std::ofstream(dir_ + "/chat_template.jinja") << "{{ messages[0].content }}{% if add_generation_prompt %}a{% endif %}";
  EXPECT_EQ(Tokens("chat", "ab"), (std::vector<int32_t>{2, 0}));  // no special token that the template does not write
}

}  // namespace
}  // namespace lockstep
