#include "learner/verifier/verifier.h"

#include <chrono>
#include <cstdio>
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

TEST(Verifier, MathComparesWhatAnswersMean) {
  const Case cases[] = {
      {"2\\sqrt{3}", "\\sqrt{12}", 1},
      {"\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}", 1},
      {"\\sqrt[3]{8}", "2", 1},
      {"\\sqrt{2}", "1.41421", 0},
      {"x^2+2x+1", "(x+1)^2", 1},
      {"x^2+2x+2", "(x+1)^2", 0},
      {"(x-2)(x+2)(x^2+4)(x^4+16)", "(x^4+16)(x^2+4)(x+2)(x-2)", 1},
      {"|x|", "x", 0},
      {"\\sqrt{x^2}", "|x|", 1},
      {"\\frac{1}{x-1}", "-\\frac{1}{1-x}", 1},
      {"\\cos x / \\sin x", "\\cot x", 1},
      {"1 - \\cos^2 y", "\\sin^2 y", 1},
      {"\\sin^{-1} 1", "\\frac{\\pi}{2}", 1},
      {"\\log_2 8", "3", 1},
      {"\\log 100", "2", 1},
      {"5!", "120", 1},
      {"\\binom{6}{3}", "20", 1},
      {"\\lfloor \\pi \\rfloor", "3", 1},
      {"i^2", "-1", 1},
      {"(1+2i)(1-2i)", "5", 1},
      {"e^{i\\pi}", "-1", 1},
      {"2^{-3}", "0.125", 1},
      {"6.72\\times10^{-5}", ".0000672", 1},
      {"2^{100}", "1267650600228229401496703205376", 1},
      {"2^{100}+1", "1267650600228229401496703205376", 0},
      {"10^{300}+1", "10^{300}", 0},
      {"0.333333333333", "1/3", 0},
      {"1\\frac{4}{5}", "\\frac{9}{5}", 1},
      {"1 4/5", "1.8", 1},
      {"14/5", "1\\frac{4}{5}", 0},
      {"\\frac{1}{0}", "\\frac{2}{0}", 0},
      {"1,2", "2, 1", 1},
      {"\\{1, 2\\}", "2 \\text{ and } 1", 1},
      {"1, 2, 2", "1, 2", 0},
      {"(1,2)", "1,2", 0},
      {"[1,2)", "(1,2)", 0},
      {"100,200", "200, 100", 1},
      {"3 \\pm 2\\sqrt{2}", "3-\\sqrt{8}, 3+\\sqrt{8}", 1},
      {"\\pm 3", "3", 0},
      {"(-\\infty, 2) \\cup (3, \\infty)", "(3,\\infty)\\cup(-\\infty,2)", 1},
      {"x < 2", "(-\\infty, 2)", 1},
      {"-2 \\le x \\le 7", "x \\in [-2,7]", 1},
      {"-2 < x \\le 7", "[-2,7]", 0},
      {"7 \\ge x \\ge -2", "[-2,7]", 1},
      {"\\begin{bmatrix} -1/3 \\\\ 2/3 \\end{bmatrix}", "\\begin{pmatrix} -\\frac13 \\\\ \\frac23 \\end{pmatrix}", 1},
      {"\\begin{pmatrix} 1 & 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", 0},
      {"\\left[\\begin{array}{cc} 1 & 2 \\\\ 3 & 4 \\end{array}\\right]", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
       1},
      {"y = 2x+3", "2x+3", 1},
      {"2x - y = -3", "y = 2x + 3", 1},
      {"y = -2x", "y = 2x", 0},
      {"x = 5", "y = 5", 0},
      {"20\\%", "0.2", 1},
      {"20\\%", "20", 1},
      {"20\\%", "2", 0},
      {"5\\text{ cm}", "5\\text{ centimeters}", 1},
      {"5\\text{ cm}", "5\\text{ m}", 0},
      {"5\\text{ cm}", "5\\text{ cm}^2", 1},
      {"\\$32{,}348", "32348 dollars", 1},
      {"52_8", "52_{8}", 1},
      {"52_8", "52_9", 0},
      {"9:24", "9:25", 0},
      {"05:00", "5:00", 1},
      {"8:34 \\text{ a.m.}", "8\\!:\\!34 \\text{ p.m.}", 0},
      {"8:34 PM", "8\\!:\\!34 \\text{ p.m.}", 1},
      {"\\text{East}", "east", 1},
      {"seat", "east", 0},
      {"\\text{(C)}", "C", 1},
      {"ba", "ab", 1},
      {"\\text{no real solutions}", "No real solutions.", 1},
      {"\\theta", "\\alpha", 0},
      {"x_1 + x_2", "x_{2} + x_{1}", 1},
      {"\\frac\\pi 2", "\u03c0/2", 1},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(ScoreOf("math", std::string("\\boxed{") + c.response + "}", c.answer), c.score)
        << c.response << " / " << c.answer;
  }
  EXPECT_EQ(ScoreOf("math", "so 3*4=12\n#### 12", "She has 3*4=12.\n#### 12"), 1);
  EXPECT_EQ(ScoreOf("math", "**Answer:** 12", "12"), 1);
}

TEST(Verifier, MultipleChoiceTakesAStatedLetter) {
  const Case cases[] = {
      {"B", "B", 1},
      {"(B)", "B", 1},
      {"b.", "B", 1},
      {"**B**", "B", 1},
      {"B) 12", "(B)", 1},
      {"the answer is B", "B", 1},
      {"The answer is (B), because C is too large.", "B", 1},
      {"\\boxed{\\text{B}}", "B", 1},
      {"\\boxed{\\text{(B)}}", "\\text{(B)}", 1},
      {"\\boxed{\\textbf{(B) }12}", "B", 1},
      {"A is wrong.\n\nB", "B", 1},
      {"so \\boxed{C}, or B", "B", 0},
      {"The answer is a bit unclear", "A", 0},
      {"A and B", "A", 0},
      {"A, B", "A", 0},
      {"Because", "B", 0},
      {"I think B fits best here", "B", 0},
      {"F", "B", 0},
      {"", "B", 0},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(ScoreOf("multiple_choice", c.response, c.answer), c.score) << c.response << " / " << c.answer;
  }
  EXPECT_EQ(Score(RewardKind::kMultipleChoice, "B", "12").status().message(),
            "the problem's answer is \"12\", reward multiple_choice needs a letter A to E");
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

// Answers of the longest length that is read at all, each the worst of its kind: no stack, no time.
TEST(Verifier, HostileAnswersAreWrongInBoundedTime) {
  const auto repeat = [](const std::string& part) {
    std::string text;
    while (text.size() + part.size() <= kMaxAnswerBytes) text += part;
    return text;
  };
  const auto nest = [](const std::string& open, const std::string& close) {
    std::string text;
    const size_t depth = kMaxAnswerBytes / (open.size() + close.size()) - 1;
    for (size_t i = 0; i < depth; ++i) text += open;
    text += "7";
    for (size_t i = 0; i < depth; ++i) text += close;
    return text;
  };
  const std::string answers[] = {"9^9^9^9",
                                 "9^{9^{9^{9}}}",
                                 "9^{-9^{9^9}}",
                                 "(1/3)^{99999999999999999999}",
                                 "99999!",
                                 "250!!!!",
                                 "1e999",
                                 "1e-999",
                                 "0^0",
                                 "0^{-1}",
                                 "1/0",
                                 "\\frac{0}{0}",
                                 "\\log 0",
                                 "\\tan\\frac{\\pi}{2}",
                                 "\\sqrt[0]{5}",
                                 "x^{x^{x^x}}",
                                 "nan",
                                 "inf",
                                 "NaN",
                                 "\\infty-\\infty",
                                 "\\binom{99999999}{50000000}",
                                 "\\binom{2000}{1000}",
                                 "2^{2047}\\cdot2^{2047}",
                                 repeat("1/3+"),
                                 repeat("3^"),
                                 repeat("-"),
                                 repeat("1,"),
                                 repeat("x,"),
                                 repeat("\\pm"),
                                 repeat("|"),
                                 repeat("|x"),
                                 repeat("\\frac"),
                                 repeat("\\frac1"),
                                 repeat("\\sqrt"),
                                 repeat("\\sin"),
                                 repeat("!"),
                                 repeat("5!"),
                                 repeat("{"),
                                 repeat("}"),
                                 repeat("("),
                                 repeat("\\text{"),
                                 repeat("\\left("),
                                 repeat("\\begin{pmatrix}"),
                                 repeat("&"),
                                 repeat("\\\\"),
                                 repeat("="),
                                 repeat("x="),
                                 repeat("\\cup"),
                                 repeat("<"),
                                 repeat(":"),
                                 repeat("^\\circ"),
                                 repeat("%"),
                                 repeat("1\\%"),
                                 repeat("_"),
                                 repeat("x_"),
                                 repeat("\xff"),
                                 repeat("\\"),
                                 repeat("1.1"),
                                 repeat("(x+1/7)^{31}"),
                                 repeat("(x+y+1/7)^{2}*"),
                                 repeat("\\frac{1}{97}\\cdot"),
                                 repeat("1e99+"),
                                 repeat("\\text{a b}"),
                                 repeat("or "),
                                 nest("{", "}"),
                                 nest("(", ")"),
                                 nest("\\{", "\\}"),
                                 nest("\\sqrt{", "}"),
                                 nest("\\frac{1}{", "}"),
                                 nest("|", "|"),
                                 nest("\\text{", "}"),
                                 nest("2^{", "}"),
                                 nest("(1,", ")"),
                                 nest("\\lfloor ", "\\rfloor "),
                                 nest("\\{1,", "\\}"),
                                 nest("\\begin{pmatrix}", "\\end{pmatrix}"),
                                 std::string(kMaxAnswerBytes, '9'),
                                 std::string(kMaxAnswerBytes, '\0')};
  const auto start = std::chrono::steady_clock::now();
  size_t right = 0;
  for (const std::string& a : answers) {
    for (const char* b : {"7", "0", "x", "1, 2", "(1,2)", "\\begin{pmatrix}1\\end{pmatrix}", "y=7x"}) {
      right += SameAnswer(a, b) + SameAnswer(b, a);
      if (SameAnswer(a, b)) std::printf("%.60s equals %s\n", a.c_str(), b);
    }
    EXPECT_FALSE(SameAnswer(a, a + "0") && SameAnswer(a, a + "1")) << a.substr(0, 60);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 60);  // seconds under a sanitizer, a fraction of one otherwise
  std::printf("%.2f s, %zu accepted\n", seconds.count(), right);
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
