#include "learner/score.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/model/test_util.h"
#include "engine/tokenizer/arithmetic.h"

namespace lockstep {
namespace {

std::vector<int32_t> SomeTokens(int64_t vocab_size, int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(testing::Hash32(77, i) % vocab_size));
  return tokens;
}

std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

class ScoreTest : public ::testing::TestWithParam<DType> {
 protected:
  std::shared_ptr<Weights> MakeWeights() const {
    return std::make_shared<Weights>(testing::TestWeights(testing::SmallConfig(), GetParam()));
  }
};

TEST_P(ScoreTest, MatchedNumericsGiveTheSameBitsInBothEngines) {
  const auto weights = MakeWeights();
  // 150 tokens cross the block of 128 keys of attention.
  const std::vector<int32_t> tokens = SomeTokens(weights->config.vocab_size, 150);
  Scorer learner(weights, {.engine = ScoreEngine::kLearner, .temperature = 0.7f});
  const auto wanted = Bits(learner.LogProbs(tokens, 1));
  ASSERT_EQ(wanted.size(), tokens.size() - 1);
  for (int64_t num_prompt : {1, 17, 149, 150}) {
    for (int64_t chunk : {5, 64, 128}) {
      Scorer rollout(
          weights, {.engine = ScoreEngine::kRollout, .temperature = 0.7f, .threads = 2, .prefill_chunk_tokens = chunk});
      EXPECT_EQ(Bits(rollout.LogProbs(tokens, num_prompt)), wanted) << num_prompt << " in chunks of " << chunk;
    }
  }
}

TEST_P(ScoreTest, NativeNumericsAreNearTheMatchedOnes) {
  const auto weights = MakeWeights();
  const std::vector<int32_t> tokens = SomeTokens(weights->config.vocab_size, 60);
  Scorer matched(weights, {.engine = ScoreEngine::kLearner});
  Scorer native(weights, {.engine = ScoreEngine::kRollout, .numerics = Numerics::kNative});
  const auto a = matched.LogProbs(tokens, 1), b = native.LogProbs(tokens, 20);
  const double bound = GetParam() == DType::kBF16 ? 0.2 : 0.03;  // some roundings of values near 8
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], bound) << i;
}

TEST_P(ScoreTest, ProbabilitiesOfAllNextTokensAddUpToOne) {
  const auto weights = MakeWeights();
  Scorer scorer(weights, {.engine = ScoreEngine::kRollout});
  std::vector<int32_t> tokens = {3, 5, 0};
  double sum = 0;
  for (int32_t v = 0; v < weights->config.vocab_size; ++v) {
    tokens.back() = v;
    sum += std::exp(static_cast<double>(scorer.LogProbs(tokens, 2).back()));
  }
  EXPECT_NEAR(sum, 1, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(DTypes, ScoreTest, ::testing::Values(DType::kF16, DType::kBF16, DType::kF32));

class ScoreLinesTest : public ::testing::Test {
 protected:
  ScoreLinesTest() {
    const std::string dir = ::testing::TempDir() + "/score_test_tokenizer";
    std::filesystem::create_directories(dir);
    EXPECT_TRUE(MakeArithmeticTokenizer(dir).ok());
    tokenizer_ = *Tokenizer::Load(dir);
    ModelConfig config = testing::SmallConfig();
    config.max_position_embeddings = 64;
    scorer_ = std::make_unique<Scorer>(std::make_shared<Weights>(testing::TestWeights(config, DType::kF32)),
                                       ScorerOptions{.engine = ScoreEngine::kRollout});
  }
  absl::Status Score(const std::string& text) {
    std::istringstream in(text);
    out_.str("");
    return ScoreLines(in, out_, {.name = "in.jsonl"}, tokenizer_.get(), *scorer_);
  }
  std::string Error(const std::string& text) { return std::string(Score(text).message()); }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Scorer> scorer_;
  std::ostringstream out_;
};

TEST_F(ScoreLinesTest, EachLineGivesOneNumberATokenThatReadsAsTheSameFloat) {
  ASSERT_TRUE(Score("{\"tokens\": [1, 2, 3, 4]}\n\n{\"tokens\": [9]}\n").ok());
  std::istringstream lines(out_.str());
  std::string line;
  std::getline(lines, line);
  const auto result = nlohmann::json::parse(line);
  const std::vector<float> wanted = scorer_->LogProbs({1, 2, 3, 4}, 1);
  ASSERT_EQ(result["log_probs"].size(), 4);
  EXPECT_TRUE(result["log_probs"][0].is_null());
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(result["log_probs"][i + 1].get<float>(), wanted[i]);
  std::getline(lines, line);
  EXPECT_EQ(line, "{\"log_probs\": [null], \"num_prompt_tokens\": 1}");
}

TEST_F(ScoreLinesTest, TextsSayWhichTokensTheNumbersBelongTo) {
  ASSERT_TRUE(Score("{\"prompt\": \"1+1=\", \"response\": \"2\"}\n").ok());
  const auto result = nlohmann::json::parse(out_.str());
  EXPECT_EQ(result["num_prompt_tokens"], 4);
  EXPECT_EQ(result["tokens"].get<std::vector<int32_t>>(), *tokenizer_->Encode("1+1=2"));
  EXPECT_EQ(result["log_probs"].size(), 5);
}

TEST_F(ScoreLinesTest, BadLinesAreNamed) {
  EXPECT_EQ(Error("{\"tokens\": [1]}\nnonsense\n"), "in.jsonl:2: not a JSON object");
  EXPECT_NE(out_.str(), "") << "the lines before it are written";
  EXPECT_EQ(Error("{\"tokens\": [1, 101]}"), "in.jsonl:1: tokens[1] is 101, must be an id of the vocabulary, 0 to 100");
  EXPECT_EQ(Error("{\"tokens\": [1, -1]}"), "in.jsonl:1: tokens[1] is -1, must be an id of the vocabulary, 0 to 100");
  EXPECT_EQ(Error("{\"tokens\": [1, 1e3]}"),
            "in.jsonl:1: tokens[1] is 1000.0, must be an id of the vocabulary, 0 to 100");
  EXPECT_EQ(Error("{\"tokens\": [18446744073709551615]}"),
            "in.jsonl:1: tokens[0] is 18446744073709551615, must be an id of the vocabulary, 0 to 100");
  EXPECT_EQ(Error("{\"tokens\": []}"), "in.jsonl:1: there is no token to score");
  EXPECT_EQ(Error("{\"tokens\": 5}"), "in.jsonl:1: tokens must be an array of token ids");
  EXPECT_EQ(Error("{\"tokens\": [1, 2], \"num_prompt_tokens\": 3}"),
            "in.jsonl:1: num_prompt_tokens is 3, must be 1 to the number of tokens, 2");
  EXPECT_EQ(Error("{\"prompt\": \"1\"}"),
            "in.jsonl:1: no text under response; a line has tokens, or prompt and response");
  EXPECT_EQ(Error("{\"prompt\": \"\", \"response\": \"1\"}"), "in.jsonl:1: the prompt is empty");
  std::string longest = "{\"tokens\": [1";
  for (int i = 0; i < 64; ++i) longest += ", 1";
  EXPECT_EQ(Error(longest + "]}"), "in.jsonl:1: 65 tokens, above the model's 64 positions; shorten it");
}

}  // namespace
}  // namespace lockstep
