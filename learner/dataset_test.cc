#include "learner/dataset.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "engine/tokenizer/arithmetic.h"

namespace lockstep {
namespace {

class DatasetTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = std::filesystem::path(testing::TempDir()) /
           (std::string("dataset_") + testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    ASSERT_TRUE(MakeArithmeticTokenizer(dir_.string()).ok());
    auto tokenizer = Tokenizer::Load(dir_.string());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    options_.path = (dir_ / "data.jsonl").string();
    options_.needs_answer = true;
  }
  absl::StatusOr<std::vector<Problem>> Load(const std::string& text) {
    std::ofstream(options_.path) << text;
    return LoadDataset(options_, *tokenizer_);
  }
  // The error with the folder cut off.
  std::string Error(const std::string& text) {
    const absl::Status status = Load(text).status();
    const std::string message(status.message());
    return message.substr(0, dir_.string().size()) == dir_.string() ? message.substr(dir_.string().size() + 1)
                                                                    : message;
  }

  std::filesystem::path dir_;
  std::unique_ptr<Tokenizer> tokenizer_;
  DatasetOptions options_;
};

TEST_F(DatasetTest, TakesTheCommonFieldNames) {
  const auto problems = Load(
      "{\"prompt\": \"1+1=\", \"answer\": \"2\", \"extra\": [1]}\n\n"
      "{\"problem\": \"2+2=\", \"label\": 4}\n"
      "{\"input\": \"3+3=\", \"answer\": 6}\n");
  ASSERT_TRUE(problems.ok()) << problems.status();
  ASSERT_EQ(problems->size(), 3);
  EXPECT_EQ((*problems)[0].answer, "2");
  EXPECT_EQ((*problems)[1].answer, "4");
  EXPECT_EQ(tokenizer_->Decode((*problems)[2].prompt_tokens), "3+3=");
  EXPECT_NE((*problems)[0].line.find("extra"), std::string::npos);
}

TEST_F(DatasetTest, ReadsTheHabitsOfGsm8kMathAndVerl) {
  const auto problems = Load(
      "{\"question\": \"1+1=\", \"answer\": \"1 and 1 is 2.\\n#### 1,002\"}\n"
      "{\"problem\": \"2+2=\", \"solution\": \"so \\\\boxed{4}\", \"level\": \"Level 1\"}\n"
      "{\"prompt\": \"3+3=\", \"reward_model\": {\"style\": \"rule\", \"ground_truth\": \"6\"}, \"answer\": null}\n"
      "{\"prompt\": \"4+4=\", \"ground_truth\": 8}\n");
  ASSERT_TRUE(problems.ok()) << problems.status();
  ASSERT_EQ(problems->size(), 4);
  EXPECT_EQ((*problems)[0].answer, "1,002");
  EXPECT_EQ((*problems)[1].answer, "so \\boxed{4}");
  EXPECT_EQ((*problems)[2].answer, "6");
  EXPECT_EQ((*problems)[3].answer, "8");
  options_.needs_answer = false;
  options_.needs_response = true;
  EXPECT_EQ(tokenizer_->Decode((*Load("{\"prompt\": \"1\", \"completion\": \"2\"}"))[0].response_tokens), "2");
}

TEST_F(DatasetTest, TakesNoMoreProblemsThanAskedFor) {
  options_.max_problems = 2;
  const auto problems =
      Load("{\"prompt\": \"1\", \"answer\": 1}\n{\"prompt\": \"2\", \"answer\": 2}\nlines that are not read\n");
  ASSERT_TRUE(problems.ok()) << problems.status();
  EXPECT_EQ(problems->size(), 2);
}

TEST_F(DatasetTest, PutsTheProblemIntoTheTemplate) {
  options_.prompt_template = "Q: {prompt}=";
  EXPECT_EQ(tokenizer_->Decode((*Load("{\"prompt\": \"1+1\", \"answer\": \"2\"}"))[0].prompt_tokens), "Q: 1+1=");
  options_.prompt_template = "Q: ";
  EXPECT_EQ(
      Error("{}"),
      "data.prompt_template is 'Q: '; it must hold {prompt}, or be one of chat, none, r1_distill_qwen, qwen_math, r1");
}

TEST_F(DatasetTest, SupervisedResponsesEndWithTheEndToken) {
  options_.needs_response = true;
  options_.needs_answer = false;
  options_.eos_token_id = tokenizer_->eos_token_id();
  ASSERT_GE(options_.eos_token_id, 0);
  const auto problems = Load("{\"prompt\": \"1+1=\", \"response\": \"2\"}");
  ASSERT_TRUE(problems.ok()) << problems.status();
  ASSERT_EQ((*problems)[0].response_tokens.size(), 2);
  EXPECT_EQ((*problems)[0].response_tokens.back(), options_.eos_token_id);
}

TEST_F(DatasetTest, ErrorsNameFileAndLine) {
  EXPECT_EQ(Error("{\"prompt\": \"1\", \"answer\": \"1\"}\n{\"prompt\": \"1\", \"ans"),
            "data.jsonl:2: not a JSON object");
  EXPECT_EQ(Error("[1, 2]"), "data.jsonl:1: not a JSON object");
  EXPECT_EQ(Error("{\"text\": \"1\"}"), "data.jsonl:1: no text under prompt, problem, question or input");
  EXPECT_EQ(Error("{\"prompt\": \"1\"}"),
            "data.jsonl:1: no text or number under answer, label, solution, ground_truth or reward_model.ground_truth");
  EXPECT_EQ(Error("{\"prompt\": true, \"answer\": 1}"), "data.jsonl:1: prompt is true, must be text or a number");
  EXPECT_EQ(Error("{\"prompt\": \"1\", \"label\": [2]}"),
            "data.jsonl:1: label is an array of 1, must be text or a number");
  EXPECT_EQ(Error("{\"question\": \"1\", \"answer\": \"1+1=2 #### \"}"),
            "data.jsonl:1: the answer ends in ####, and nothing follows");
  EXPECT_EQ(Error("{\"prompt\": [{\"role\": \"user\", \"content\": \"1\"}], \"answer\": 1}"),
            "data.jsonl:1: prompt is a list of chat messages, which is not rendered here; put the text of the whole "
            "prompt there");
  EXPECT_EQ(Error("\n\n"), "data.jsonl: no problems in it");
  options_.max_prompt_tokens = 3;
  EXPECT_EQ(Error("{\"prompt\": \"1+1=\", \"answer\": \"2\"}"),
            "data.jsonl:1: the prompt has 4 tokens, data.max_prompt_tokens is 3; shorten it or raise the limit");
  options_.needs_response = true;
  EXPECT_EQ(Error("{\"prompt\": \"1\", \"answer\": \"1\"}"), "data.jsonl:1: no text under response or completion");
  options_.path = "/nonexistent/data.jsonl";
  EXPECT_EQ(LoadDataset(options_, *tokenizer_).status().message(), "cannot read the data set /nonexistent/data.jsonl");
}

TEST(DataOrderTest, EachPassIsAPermutationOfItsOwn) {
  DataOrder order(100, 7, true);
  std::vector<uint64_t> first, second;
  for (uint64_t i = 0; i < 100; ++i) first.push_back(order.IndexAt(i));
  for (uint64_t i = 100; i < 200; ++i) second.push_back(order.IndexAt(i));
  EXPECT_EQ(std::set<uint64_t>(first.begin(), first.end()).size(), 100);
  EXPECT_EQ(std::set<uint64_t>(second.begin(), second.end()).size(), 100);
  EXPECT_NE(first, second);
  EXPECT_EQ(order.IndexAt(3), first[3]) << "going back gives the same";
}

TEST(DataOrderTest, TheOrderDependsOnTheSeedAlone) {
  DataOrder a(50, 1, true), b(50, 1, true), c(50, 2, true);
  bool differs = false;
  for (uint64_t i = 0; i < 120; ++i) {
    EXPECT_EQ(a.IndexAt(119 - i), b.IndexAt(119 - i));
    differs |= a.IndexAt(i) != c.IndexAt(i);
  }
  EXPECT_TRUE(differs);
}

TEST(DataOrderTest, WithoutShufflingTheOrderIsTheFiles) {
  DataOrder order(3, 1, false);
  for (uint64_t i = 0; i < 7; ++i) EXPECT_EQ(order.IndexAt(i), i % 3);
}

}  // namespace
}  // namespace lockstep
