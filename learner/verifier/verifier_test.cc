#include "learner/verifier/verifier.h"

#include <string>

#include "gtest/gtest.h"
#include "learner/verifier/math_answer.h"
#include "learner/verifier/number.h"

namespace lockstep {
namespace {

double ScoreOf(const char* kind, const std::string& response, const std::string& answer) {
  const auto parsed = ParseRewardKind(kind);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  const auto score = Score(*parsed, response, answer);
  EXPECT_TRUE(score.ok()) << score.status();
  return score.ok() ? *score : -1;
}

TEST(Verifier, KnowsItsKinds) {
  EXPECT_EQ(ParseRewardKind("maths").status().message(),
            "reward is \"maths\", must be exact, numeric, math, multiple_choice or service");
}

TEST(Verifier, ExactComparesWithoutOuterSpace) {
  EXPECT_EQ(ScoreOf("exact", " yes\n", "yes"), 1);
  EXPECT_EQ(ScoreOf("exact", "yes.", "yes"), 0);
  EXPECT_EQ(ScoreOf("exact", "", "yes"), 0);
}

struct Case {
  const char* response;
  const char* answer;
  double score;
};

TEST(Verifier, NumericTakesTheLastNumberExactly) {
  const Case cases[] = {
      {"4+7=11 c1; 8+9+1=18 c1; A: 981", "981", 1},
      {"A: 981.", "981", 1},
      {"A: 0981", "981", 1},
      {"A: 981.0", "981", 1},
      {"A: 981.5", "981", 0},
      {"A: 98 1", "981", 0},
      {"981 and then 3", "981", 0},
      {"the total is 1,234,567 units", "1234567", 1},
      {"1,23", "123", 0},
      {"1,2345", "2345", 1},
      {"x = -5", "-5", 1},
      {"10-5", "5", 1},
      {"10 - 5", "5", 1},
      {"-5", "5", 0},
      {"0.1", "1/10", 1},
      {"2/4", "1/2", 1},
      {"1/3", "0.333333", 0},
      {"1e3", "1000", 1},
      {"2eggs", "2", 1},
      {".5", "0.50", 1},
      {"-0", "0", 1},
      {"5/0", "5", 0},
      {"100000000000000000000000000000000000001", "100000000000000000000000000000000000001", 1},
      {"100000000000000000000000000000000000001", "100000000000000000000000000000000000000", 0},
      {"0.1000000000000000000000000000000000000", "0.1", 1},
      {"no number", "7", 0},
      {"", "7", 0},
  };
  for (const Case& c : cases)
    EXPECT_EQ(ScoreOf("numeric", c.response, c.answer), c.score) << c.response << " / " << c.answer;
}

TEST(Verifier, MathTakesTheLastBoxOrTheStatedAnswer) {
  const Case cases[] = {
      {"so \\boxed{1} or rather \\boxed{2}", "2", 1},
      {"so \\boxed{1} or rather \\boxed{2}", "1", 0},
      {"\\boxed{\\frac{1}{2}}", "0.5", 1},
      {"\\boxed{\\dfrac{3}{4}}", "\\frac{3}{4}", 1},
      {"\\boxed{\\frac34}", "\\frac{3}{4}", 1},
      {"\\boxed{-\\frac{1}{2}}", "-1/2", 1},
      {"\\boxed{5\\text{ cm}}", "5", 1},
      {"\\boxed{\\text{Sunday}}", "Sunday", 1},
      {"\\boxed{x = 5}", "5", 1},
      {"\\boxed{90^\\circ}", "90", 1},
      {"\\boxed{50\\%}", "50", 1},
      {"\\boxed{\\$1,000}", "1000", 1},
      {"\\boxed{\\left( 1, 2 \\right)}", "(1,2)", 1},
      {"\\boxed{(1,2)}", "(2,1)", 0},
      {"\\boxed{\\sqrt2}", "\\sqrt{2}", 1},
      {"\\boxed 7 done", "7", 1},
      {"The final answer is 42.", "42", 1},
      {"Answer: $12$", "12", 1},
      {"answer: 3\nAnswer: 4", "4", 1},
      {"it is 42", "42", 0},
      {"\\boxed{1", "1", 0},
      {"\\boxed{3} and \\boxed{4", "3", 1},
      {"\\boxed{}", "0", 0},
      {"\\boxed{2}", "Thus the answer is \\boxed{2}.", 1},
      {"", "0", 0},
  };
  for (const Case& c : cases)
    EXPECT_EQ(ScoreOf("math", c.response, c.answer), c.score) << c.response << " / " << c.answer;
}

TEST(Verifier, RefusesAProblemThatCannotBeCompared) {
  EXPECT_EQ(Score(RewardKind::kNumeric, "1", "blue").status().message(),
            "the problem's answer is \"blue\", reward numeric needs a number");
  EXPECT_EQ(Score(RewardKind::kExact, "1", " ").status().message(), "the problem's answer is empty");
}

// Responses are the model's: long, binary, unbalanced. Each must be scored, quickly.
TEST(Verifier, HostileResponsesAreJustWrong) {
  std::string boxes;
  for (int i = 0; i < 100000; ++i) boxes += "\\boxed{";
  const std::string responses[] = {std::string(1 << 20, '{'),
                                   std::string(1 << 20, '1'),
                                   std::string(1 << 20, ','),
                                   boxes,
                                   std::string(1 << 20, '-'),
                                   std::string(1000, '\0'),
                                   "\\boxed{" + std::string(1 << 20, '\\') + "}",
                                   "1," + std::string(1 << 20, '2')};
  for (const std::string& response : responses) {
    for (const char* kind : {"exact", "numeric", "math"}) EXPECT_EQ(ScoreOf(kind, response, "7"), 0);
  }
  std::string fractions;
  for (int i = 0; i < 100000; ++i) fractions += "\\frac";
  EXPECT_EQ(ScoreOf("math", "\\boxed{" + fractions + "}", "7"), 0);
  std::string nested;
  for (int i = 0; i < 100000; ++i) nested += "\\frac{";
  EXPECT_EQ(ScoreOf("math", "\\boxed{" + nested + std::string(100000, '}') + "}", "7"), 0);
}

TEST(Number, ComparesAcrossSpellings) {
  EXPECT_TRUE(Equal(*ParseNumber("1.50"), *ParseNumber("3/2")));
  EXPECT_TRUE(Equal(*ParseNumber("-3/2"), *ParseNumber("-1.5e0")));
  EXPECT_FALSE(Equal(*ParseNumber("3/2"), *ParseNumber("-3/2")));
  EXPECT_FALSE(ParseNumber("1.5 ").has_value());
  EXPECT_FALSE(ParseNumber("").has_value());
  EXPECT_FALSE(ParseNumber("-").has_value());
}

}  // namespace
}  // namespace lockstep
