#include "learner/tasks/recurrence.h"

#include <cstdio>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

TEST(Recurrence, EveryTermFollowsFromThoseBeforeItAndTheLastIsTheAnswer) {
  const auto problems = MakeRecurrenceProblems({.count = 300, .seed = 5, .min_terms = 1, .max_terms = 40});
  ASSERT_TRUE(problems.ok()) << problems.status();
  std::set<int> counts;
  for (const ArithmeticProblem& problem : *problems) {
    std::vector<int> x(3);
    int terms = 0;
    ASSERT_EQ(std::sscanf(problem.prompt.c_str(), "Q: %d %d %d %d=", &x[0], &x[1], &x[2], &terms), 4) << problem.prompt;
    counts.insert(terms);
    size_t at = 0;
    for (int term = 1; term <= terms; ++term, at += 10) {
      int number = 0, a = -1, b = -1, sum = -1;
      ASSERT_EQ(std::sscanf(problem.response.c_str() + at, "%d:%d+%d=%d;", &number, &a, &b, &sum), 4)
          << problem.response;
      EXPECT_EQ(number, term);
      EXPECT_EQ(a, x[x.size() - 1]);
      EXPECT_EQ(b, x[x.size() - 3]);
      EXPECT_EQ(sum, a + b);
      x.push_back(sum % 10);
    }
    EXPECT_EQ(problem.response.substr(at), absl::StrCat("A: ", problem.answer));
    EXPECT_EQ(problem.answer, absl::StrCat(x.back()));
  }
  EXPECT_EQ(*counts.begin(), 1);
  EXPECT_EQ(*counts.rbegin(), 40);
}

TEST(Recurrence, PromptsAreDistinctAndASeedGivesTheSameProblems) {
  const RecurrenceOptions options = {.count = 2000, .seed = 9, .min_terms = 28, .max_terms = 46};
  const auto problems = MakeRecurrenceProblems(options), again = MakeRecurrenceProblems(options);
  ASSERT_TRUE(problems.ok() && again.ok());
  std::set<std::string> prompts;
  for (size_t i = 0; i < problems->size(); ++i) {
    EXPECT_TRUE(prompts.insert((*problems)[i].prompt).second) << (*problems)[i].prompt;
    EXPECT_EQ((*problems)[i].response, (*again)[i].response);
  }
}

TEST(Recurrence, TermsOutOfRangeAreRefused) {
  for (const auto& [low, high] : {std::pair{0, 4}, {5, 4}, {1, 100}}) {
    const auto problems = MakeRecurrenceProblems({.count = 1, .min_terms = low, .max_terms = high});
    EXPECT_THAT(std::string(problems.status().message()), ::testing::HasSubstr("must be within 1 to 99"));
  }
}

}  // namespace
}  // namespace lockstep
