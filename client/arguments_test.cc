#include <gtest/gtest.h>

#include "client/commands.h"

namespace lockstep {
namespace {

const std::vector<std::string> kKnown = {"model=", "n=", "greedy"};

TEST(Arguments, AValueFollowsAnEqualsSignOrIsTheNextWord) {
  for (const std::vector<std::string>& line : std::vector<std::vector<std::string>>{
           {"--model=DIR", "--n=3", "--greedy", "word"}, {"--model", "DIR", "--n", "3", "--greedy", "word"}}) {
    const auto split = SplitArguments(line, kKnown);
    ASSERT_TRUE(split.ok()) << split.status();
    EXPECT_EQ(split->Get("model"), "DIR");
    EXPECT_EQ(split->Get("n"), "3");
    EXPECT_TRUE(split->Has("greedy"));
    EXPECT_EQ(split->words, std::vector<std::string>{"word"});
  }
}

TEST(Arguments, AnEmptyValueAndOneWithEqualsSignsAreTakenAsTheyAre) {
  EXPECT_EQ(SplitArguments({"--model="}, kKnown)->Get("model", "other"), "");
  EXPECT_EQ(SplitArguments({"--model", "a=b"}, kKnown)->Get("model"), "a=b");
  EXPECT_EQ(SplitArguments({"--n", "-1"}, kKnown)->Get("n"), "-1");
}

TEST(Arguments, ErrorsNameTheFlag) {
  EXPECT_EQ(SplitArguments({"--model"}, kKnown).status().message(), "--model needs a value: --model=...");
  EXPECT_EQ(SplitArguments({"--model", "--greedy"}, kKnown).status().message(), "--model needs a value: --model=...");
  EXPECT_EQ(SplitArguments({"--greedy=1"}, kKnown).status().message(), "--greedy takes no value");
  EXPECT_EQ(SplitArguments({"--other", "x"}, kKnown).status().message(), "--other is not a flag of this command");
}

}  // namespace
}  // namespace lockstep
