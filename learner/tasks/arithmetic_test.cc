#include "learner/tasks/arithmetic.h"

#include <cstdlib>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/process.h"
#include "engine/tokenizer/arithmetic.h"
#include "engine/tokenizer/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

unsigned __int128 Value(const std::string& digits) {
  unsigned __int128 value = 0;
  for (const char digit : digits) value = value * 10 + static_cast<unsigned>(digit - '0');
  return value;
}

TEST(Arithmetic, AnswersAreTheSumsOfTheirPrompts) {
  const auto problems = MakeArithmeticProblems({.count = 500, .seed = 3, .min_digits = 1, .max_digits = 5});
  ASSERT_TRUE(problems.ok()) << problems.status();
  for (const ArithmeticProblem& problem : *problems) {
    unsigned a = 0, b = 0;
    ASSERT_EQ(std::sscanf(problem.prompt.c_str(), "Q: %u+%u=", &a, &b), 2) << problem.prompt;
    EXPECT_EQ(problem.answer, absl::StrCat(a + b));
    EXPECT_THAT(problem.response, ::testing::EndsWith(absl::StrCat("; A: ", a + b)));
  }
}

// The columns' last digits, read backwards with the last carry in front, are the answer: no step is wrong.
void ExpectStepsGiveTheAnswer(const ArithmeticOptions& options) {
  const auto problems = MakeArithmeticProblems(options);
  ASSERT_TRUE(problems.ok()) << problems.status();
  for (const ArithmeticProblem& problem : *problems) {
    std::string digits;
    std::string carry = "0";
    size_t at = 0;
    for (size_t end; (end = problem.response.find("; ", at)) != std::string::npos; at = end + 2) {
      const std::string step = problem.response.substr(at, end - at);
      unsigned x = 0, y = 0, one = 0, sum = 0, out = 0;
      const bool with_carry = carry == "1";
      ASSERT_EQ(with_carry ? std::sscanf(step.c_str(), "%u+%u+%u=%u c%u", &x, &y, &one, &sum, &out) - 1
                           : std::sscanf(step.c_str(), "%u+%u=%u c%u", &x, &y, &sum, &out),
                4)
          << step;
      EXPECT_EQ(x + y + one, sum) << step;
      EXPECT_EQ(sum / 10, out) << step;
      digits.insert(digits.begin(), static_cast<char>('0' + sum % 10));
      carry = absl::StrCat(out);
    }
    if (carry == "1") digits.insert(digits.begin(), '1');
    EXPECT_EQ(digits, problem.answer) << problem.response;
  }
}

TEST(Arithmetic, WrittenStepsGiveTheAnswer) {
  ExpectStepsGiveTheAnswer({.count = 500, .seed = 4, .min_digits = 2, .max_digits = 4});
}

TEST(Arithmetic, WrittenStepsOfLongNumbersGiveTheAnswer) {
  ExpectStepsGiveTheAnswer({.count = 300, .seed = 4, .min_digits = 8, .max_digits = 64});
}

TEST(Arithmetic, LongNumbersAddUpAndHaveAllTheirLengths) {
  const auto problems = MakeArithmeticProblems({.count = 2000, .seed = 6, .min_digits = 7, .max_digits = 30});
  ASSERT_TRUE(problems.ok()) << problems.status();
  std::set<size_t> lengths;
  for (const ArithmeticProblem& problem : *problems) {
    const size_t plus = problem.prompt.find('+');
    const std::string a = problem.prompt.substr(3, plus - 3);
    const std::string b = problem.prompt.substr(plus + 1, problem.prompt.size() - plus - 2);
    EXPECT_NE(a.front(), '0');
    EXPECT_NE(b.front(), '0');
    lengths.insert(a.size());
    EXPECT_EQ(Value(a) + Value(b), Value(problem.answer)) << problem.prompt;
  }
  EXPECT_EQ(*lengths.begin(), 7u);
  EXPECT_EQ(*lengths.rbegin(), 30u);
  EXPECT_EQ(lengths.size(), 24u);
}

// Files of released versions: the quickstart's figures are those of these problems.
TEST(Arithmetic, ShortProblemsStayThoseOfTheirSeed) {
  EXPECT_EQ(MakeArithmeticProblem({.count = 1, .seed = 1, .min_digits = 2, .max_digits = 4}, 0).prompt, "Q: 9052+740=");
  EXPECT_EQ(MakeArithmeticProblem({.count = 1, .seed = 1, .min_digits = 9, .max_digits = 9}, 7).prompt,
            "Q: 520721815+568115573=");
}

TEST(Arithmetic, TheDocumentedExampleHasItsForm) {
  const auto problems = MakeArithmeticProblems({.count = 4000, .seed = 1, .min_digits = 3, .max_digits = 3});
  ASSERT_TRUE(problems.ok());
  std::set<std::string> prompts;
  for (const ArithmeticProblem& problem : *problems) {
    EXPECT_TRUE(prompts.insert(problem.prompt).second) << problem.prompt << " twice";
    EXPECT_GE(problem.response.size(), 28u);
  }
}

TEST(Arithmetic, EqualSeedsGiveEqualFilesAndOthersDoNot) {
  const ArithmeticOptions options = {.count = 50, .seed = 7, .min_digits = 2, .max_digits = 3};
  ArithmeticOptions other = options;
  other.seed = 8;
  EXPECT_EQ(SftJsonl(*MakeArithmeticProblems(options)), SftJsonl(*MakeArithmeticProblems(options)));
  EXPECT_NE(SftJsonl(*MakeArithmeticProblems(options)), SftJsonl(*MakeArithmeticProblems(other)));
  EXPECT_EQ((*MakeArithmeticProblems(options))[9].prompt, MakeArithmeticProblem(options, 9).prompt);
}

TEST(Arithmetic, RefusesDigitsOutOfRange) {
  EXPECT_EQ(MakeArithmeticProblems({.count = 1, .seed = 0, .min_digits = 3, .max_digits = 2}).status().message(),
            "digits of operands are 3 to 2, must be within 1 to 64");
}

TEST(Arithmetic, TheTokenizerHasATokenForEveryCharacter) {
  std::string dir = ::testing::TempDir() + "/arithmetic.XXXXXX";
  ASSERT_NE(mkdtemp(dir.data()), nullptr);
  ASSERT_TRUE(MakeArithmeticTokenizer(dir).ok());
  const auto tokenizer = Tokenizer::Load(dir);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto problems = MakeArithmeticProblems({.count = 200, .seed = 5, .min_digits = 1, .max_digits = 9});
  for (const ArithmeticProblem& problem : *problems) {
    const std::string text = problem.prompt + problem.response;
    const auto ids = (*tokenizer)->Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(ids->size(), text.size());
    EXPECT_EQ((*tokenizer)->Decode(*ids), text);
  }
}

TEST(Arithmetic, JsonlHasTheFieldsOfEachUse) {
  const std::vector<ArithmeticProblem> problems = {{"Q: 1+2=", "1+2=3 c0; A: 3", "3"}};
  EXPECT_EQ(SftJsonl(problems), "{\"prompt\":\"Q: 1+2=\",\"response\":\"1+2=3 c0; A: 3\",\"answer\":\"3\"}\n");
  EXPECT_EQ(RlJsonl(problems), "{\"prompt\":\"Q: 1+2=\",\"answer\":\"3\"}\n");
}

}  // namespace
}  // namespace lockstep
