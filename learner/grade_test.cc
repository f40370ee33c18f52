#include "learner/grade.h"

#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "engine/base/process.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

class GradeTest : public testing::Test {
 protected:
  std::string Write(const std::string& text) {
    const std::string path = testing::TempDir() + "/grade.jsonl";
    std::ofstream(path) << text;
    return path;
  }
  std::string ErrorOf(const std::string& text) {
    const std::string path = Write(text);
    const auto summary = GradeFile(path, path, RewardKind::kMath);
    EXPECT_FALSE(summary.ok());
    EXPECT_EQ(*ReadFile(path), text) << "a file with a bad line is left as it was";
    const std::string message(summary.status().message());
    return message.substr(std::min(message.size(), testing::TempDir().size() + 1));
  }
};

TEST_F(GradeTest, AddsARewardToEveryLineAndKeepsItsBytes) {
  const std::string path = Write(
      "{\"response\": \"so \\\\boxed{\\\\frac12}\", \"answer\": \"0.5\", \"big\": 123456789012345678901234567890}\n"
      "\n"
      "{\"response\":\"\\\\boxed{3}\",\"answer\":4}  \r\n"
      "{\"reward\": 7, \"response\": \"(B)\", \"answer\": \"B\", \"reward_kind\": \"multiple_choice\"}");
  const auto summary = GradeFile(path, path, RewardKind::kMath);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->lines, 3u);
  EXPECT_EQ(summary->right, 2u);
  EXPECT_EQ(summary->reward_sum, 2);
  EXPECT_EQ(*ReadFile(path),
            "{\"response\": \"so \\\\boxed{\\\\frac12}\", \"answer\": \"0.5\", \"big\": "
            "123456789012345678901234567890, \"reward\": 1.0}\n"
            "{\"response\":\"\\\\boxed{3}\",\"answer\":4, \"reward\": 0.0}\n"
            "{\"reward\":1.0,\"response\":\"(B)\",\"answer\":\"B\",\"reward_kind\":\"multiple_choice\"}\n");
}

TEST_F(GradeTest, NamesTheLineThatCannotBeGraded) {
  const std::string good = "{\"response\": \"\\\\boxed{1}\", \"answer\": \"1\"}\n";
  EXPECT_EQ(ErrorOf(good + "nonsense\n"), "grade.jsonl:2: not JSON");
  EXPECT_EQ(ErrorOf(good + "[1]\n"), "grade.jsonl:2: not a JSON object");
  EXPECT_EQ(ErrorOf("{\"answer\": \"1\"}\n"), "grade.jsonl:1: no text under response");
  EXPECT_EQ(ErrorOf("{\"response\": \"1\"}\n"), "grade.jsonl:1: no text or number under answer");
  EXPECT_EQ(ErrorOf("{\"response\": \"1\", \"answer\": \" \"}\n"), "grade.jsonl:1: the problem's answer is empty");
  EXPECT_EQ(ErrorOf("{\"response\": \"1\", \"answer\": \"x\", \"reward_kind\": \"numeric\"}\n"),
            "grade.jsonl:1: the problem's answer is \"x\", reward numeric needs a number");
  EXPECT_EQ(
      ErrorOf("{\"response\": \"1\", \"answer\": \"x\", \"reward_kind\": \"maths\"}\n"),
      "grade.jsonl:1: reward_kind: reward is \"maths\", must be exact, numeric, math, multiple_choice or service");
  EXPECT_EQ(ErrorOf("{\"response\": \"\xff\", \"answer\": \"x\"}\n"), "grade.jsonl:1: not JSON");
  EXPECT_EQ(ErrorOf(std::string(100000, '[') + "\n"), "grade.jsonl:1: not JSON");
  EXPECT_EQ(ErrorOf("\n\n"), "grade.jsonl: holds no line to grade");
}

TEST_F(GradeTest, AnErrorLeavesNoTemporaryFile) {
  const std::string folder = testing::TempDir() + "/alone";
  std::filesystem::create_directory(folder);
  std::ofstream(folder + "/in.jsonl") << "{\"response\": \"1\", \"answer\": \"1\"}\nnonsense\n";
  EXPECT_FALSE(GradeFile(folder + "/in.jsonl", folder + "/out.jsonl", RewardKind::kMath).ok());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  EXPECT_FALSE(GradeFile(folder + "/missing.jsonl", folder + "/out.jsonl", RewardKind::kMath).ok());
  std::ofstream(folder + "/bad.jsonl") << "nonsense\n";
  EXPECT_FALSE(GradeFile(folder + "/bad.jsonl", folder + "/out.jsonl", RewardKind::kMath).ok());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 2);
  const auto nowhere = GradeFile(folder + "/in.jsonl", folder + "/no/folder/out.jsonl", RewardKind::kMath);
  EXPECT_NE(nowhere.status().message().find("No such file or directory"), std::string::npos) << nowhere.status();
  EXPECT_FALSE(GradeFile(folder, folder + "/out.jsonl", RewardKind::kMath).ok());
}

}  // namespace
}  // namespace lockstep
