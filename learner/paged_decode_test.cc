#include "learner/paged_decode.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <memory>

#include "engine/model/test_util.h"
#include "learner/score.h"

namespace lockstep {
namespace {

std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

// Sequences of odd lengths; the third has no response.
std::vector<PromptedTokens> SomeSequences(int64_t vocab_size) {
  std::vector<PromptedTokens> sequences;
  const int lengths[] = {40, 3, 9, 150, 2, 17};
  const int prompts[] = {7, 1, 9, 33, 1, 16};
  for (size_t i = 0; i < 6; ++i) {
    PromptedTokens sequence = {.tokens = {}, .num_prompt = prompts[i]};
    for (int t = 0; t < lengths[i]; ++t) {
      sequence.tokens.push_back(static_cast<int32_t>(testing::Hash32(i, t) % vocab_size));
    }
    sequences.push_back(sequence);
  }
  return sequences;
}

class PagedDecodeTest : public ::testing::TestWithParam<DType> {
 protected:
  const Weights weights_ = testing::TestWeights(testing::SmallConfig(), GetParam());
};

TEST_P(PagedDecodeTest, MatchedLogProbsAreThoseOfTheTrainingPassInAnyBatchAndChunk) {
  const auto sequences = SomeSequences(weights_.config.vocab_size);
  Scorer learner(std::make_shared<Weights>(testing::TestWeights(testing::SmallConfig(), GetParam())),
                 {.engine = ScoreEngine::kLearner, .temperature = 0.8f});
  const auto ops = MakeCpuOps(Numerics::kMatched, 2);
  for (int64_t batch : {1, 2, 64}) {
    for (int64_t chunk : {5, 128}) {
      std::vector<std::vector<float>> log_probs;
      ASSERT_EQ(
          DecodeGiven(weights_, *ops,
                      {.temperature = 0.8f, .max_batch_size = batch, .prefill_chunk_tokens = chunk, .progress = {}},
                      sequences, &log_probs),
          absl::OkStatus());
      ASSERT_EQ(log_probs.size(), sequences.size());
      for (size_t i = 0; i < sequences.size(); ++i) {
        std::vector<float> wanted = learner.LogProbs(sequences[i].tokens, 1);
        wanted.erase(wanted.begin(), wanted.begin() + sequences[i].num_prompt - 1);
        EXPECT_EQ(Bits(log_probs[i]), Bits(wanted)) << "sequence " << i << ", batch " << batch << ", chunk " << chunk;
      }
    }
  }
}

TEST_P(PagedDecodeTest, DrawsAreTheSameInAnyBatchAndDecodingThemAgainGivesTheSameBits) {
  const auto ops = MakeCpuOps(Numerics::kMatched, 1);
  const std::vector<int64_t> max_tokens = {30, 1, 12, 0, 25};
  const auto draw = [&](int64_t batch, uint64_t seed, std::vector<std::vector<float>>* log_probs) {
    std::vector<PromptedTokens> sequences(5, {.tokens = {1, 2, 3}, .num_prompt = 3});
    EXPECT_EQ(DecodeDrawn(weights_, *ops, {.max_batch_size = batch, .progress = {}},
                          {.seed = seed, .stop_token_ids = {0}}, max_tokens, &sequences, log_probs),
              absl::OkStatus());
    return sequences;
  };
  std::vector<std::vector<float>> log_probs, others;
  const auto drawn = draw(64, 7, &log_probs), alone = draw(1, 7, &others), other_seed = draw(64, 8, &others);
  for (size_t i = 0; i < drawn.size(); ++i) {
    EXPECT_EQ(drawn[i].tokens, alone[i].tokens) << i;
    const auto response = static_cast<int64_t>(drawn[i].tokens.size()) - drawn[i].num_prompt;
    EXPECT_LE(response, max_tokens[i]);
    EXPECT_TRUE(response == max_tokens[i] || drawn[i].tokens.back() == 0) << i;
    EXPECT_EQ(static_cast<int64_t>(log_probs[i].size()), response);
  }
  EXPECT_NE(drawn[0].tokens, drawn[2].tokens) << "samples of one prompt differ";
  EXPECT_NE(drawn[0].tokens, other_seed[0].tokens);
  std::vector<std::vector<float>> again;
  ASSERT_EQ(DecodeGiven(weights_, *ops, {}, drawn, &again), absl::OkStatus());
  for (size_t i = 0; i < drawn.size(); ++i) EXPECT_EQ(Bits(again[i]), Bits(log_probs[i])) << i;
}

TEST_P(PagedDecodeTest, DrawsFollowTheDistribution) {
  const auto ops = MakeCpuOps(Numerics::kMatched, 1);
  constexpr int kDraws = 4000;
  std::vector<PromptedTokens> sequences(kDraws, {.tokens = {5, 4}, .num_prompt = 2});
  std::vector<std::vector<float>> log_probs;
  ASSERT_EQ(DecodeDrawn(weights_, *ops, {}, {.seed = 3, .stop_token_ids = {}}, std::vector<int64_t>(kDraws, 1),
                        &sequences, &log_probs),
            absl::OkStatus());
  std::vector<double> count(static_cast<size_t>(weights_.config.vocab_size)), probability(count.size());
  for (int i = 0; i < kDraws; ++i) {
    const auto token = static_cast<size_t>(sequences[i].tokens.back());
    count[token] += 1;
    probability[token] = std::exp(log_probs[i][0]);
  }
  for (size_t token = 0; token < count.size(); ++token) {
    if (count[token] == 0) continue;
    const double p = probability[token], sigma = std::sqrt(p * (1 - p) / kDraws);
    EXPECT_NEAR(count[token] / kDraws, p, 5 * sigma + 1.0 / kDraws) << token;
  }
}

TEST_P(PagedDecodeTest, StopsWhenProgressSaysSo) {
  const auto ops = MakeCpuOps(Numerics::kMatched, 1);
  std::vector<std::vector<float>> log_probs;
  int64_t last = 0;
  const absl::Status status = DecodeGiven(weights_, *ops,
                                          {.max_batch_size = 1,
                                           .progress =
                                               [&](int64_t done) {
                                                 last = done;
                                                 return done < 4;
                                               }},
                                          SomeSequences(weights_.config.vocab_size), &log_probs);
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(last, 4);
}

INSTANTIATE_TEST_SUITE_P(DTypes, PagedDecodeTest, ::testing::Values(DType::kF16, DType::kBF16, DType::kF32),
                         [](const auto& param) { return std::string(DTypeName(param.param)); });

}  // namespace
}  // namespace lockstep
