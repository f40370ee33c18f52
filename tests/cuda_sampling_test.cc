// The device's sampler, compiled for the CPU, against the rollout server's: the same token for the same logits,
// transform and key.
#include <cmath>

#include "engine/kernels/cuda/emulation_test_util.h"
#include "rollout_server/sampler.h"

namespace lockstep {
namespace {

struct Drawn {
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
};

// One row of logits drawn from with each of `rows`.
Drawn OnDevice(const std::vector<float>& logits, const std::vector<cuda::SamplingRow>& rows,
               const std::vector<float>& lse) {
  const auto vocabulary = static_cast<int64_t>(logits.size()), count = static_cast<int64_t>(rows.size());
  std::vector<float> repeated;
  for (int64_t i = 0; i < count; ++i) repeated.insert(repeated.end(), logits.begin(), logits.end());
  Drawn drawn = {std::vector<int32_t>(rows.size(), -1), std::vector<float>(rows.size(), 1)};
  Buffer scratch(static_cast<size_t>(cuda::SampleScratchBytes(count, vocabulary)));
  EXPECT_EQ(cuda::Sample(Tensor(repeated.data(), DType::kF32, count, vocabulary), rows.data(), lse.data(),
                         drawn.tokens.data(), drawn.log_probs.data(), scratch.data(), {}),
            cudaSuccess);
  return drawn;
}

// Draws `draws` tokens with one transform on both sides. log_prob: bits where nothing is cut off, else one step.
void ExpectTheSameDraws(const std::vector<float>& logits, const SamplingTransform& transform, int draws) {
  const auto ops = MakeCpuOps(Numerics::kMatched, 1);
  const auto vocabulary = static_cast<int64_t>(logits.size());
  const float lse = transform.temperature == 0 ? 0 : ops->LogSumExp(logits.data(), vocabulary, transform.temperature);
  Sampler sampler;
  sampler.SetRow(logits.data(), vocabulary, transform, lse);
  std::vector<cuda::SamplingRow> rows;
  for (int i = 0; i < draws; ++i) {
    rows.push_back({transform.temperature, transform.top_p, transform.top_k, static_cast<uint32_t>(i % 5),
                    static_cast<uint32_t>(i), 0x123456789abcdefull, 77});
  }
  const Drawn drawn = OnDevice(logits, rows, std::vector<float>(rows.size(), lse));
  for (size_t i = 0; i < rows.size(); ++i) {
    const Draw expected = sampler.Sample({rows[i].seed, rows[i].group_id, rows[i].sample_index, rows[i].token_index});
    const std::string where = "V " + std::to_string(vocabulary) + " draw " + std::to_string(i);
    ASSERT_EQ(drawn.tokens[i], expected.token) << where;
    const bool whole = transform.top_p >= 1 && transform.top_k == 0;
    const double step = whole ? 0 : std::abs(static_cast<double>(expected.log_prob)) * 0x1p-22 + 0x1p-22;
    ASSERT_NEAR(drawn.log_probs[i], expected.log_prob, step) << where;
  }
}

std::vector<float> Logits(int64_t vocabulary, uint32_t seed, float sigma) {
  return Matrix(DType::kF32, 1, vocabulary, seed, sigma).Read();
}

TEST(CudaSamplingTest, PlainDrawsAreTheCpus) {
  for (const int64_t vocabulary : {1, 5, 255, 256, 257, 3000}) {
    for (const float temperature : {1.0f, 0.3f, 2.5f}) {
      ExpectTheSameDraws(Logits(vocabulary, 1, 3), {.temperature = temperature}, 25);
    }
  }
}

TEST(CudaSamplingTest, GreedyTakesTheLargestAndOfEqualOnesTheFirst) {
  ExpectTheSameDraws(Logits(700, 2, 1), {.temperature = 0}, 1);
  std::vector<float> logits(900, -1.0f);
  logits[700] = logits[301] = logits[302] = 2;
  ExpectTheSameDraws(logits, {.temperature = 0}, 1);
  logits.assign(300, 0.0f);
  logits[0] = -0.0f;
  ExpectTheSameDraws(logits, {.temperature = 0}, 1);
}

TEST(CudaSamplingTest, TopKAndTopPKeepWhatTheCpuKeeps) {
  for (const int64_t vocabulary : {1, 9, 700}) {
    const std::vector<float> logits = Logits(vocabulary, 3, 3);
    for (const uint32_t top_k : {0u, 1u, 50u}) {
      for (const float top_p : {0.05f, 0.95f, 1.0f}) {
        ExpectTheSameDraws(logits, {.temperature = 0.9f, .top_p = top_p, .top_k = top_k}, 2);
      }
    }
  }
}

TEST(CudaSamplingTest, OfEqualLogitsTheLowestIdsAreKept) {
  std::vector<float> logits = Logits(600, 4, 1);
  for (float& logit : logits) logit = std::round(logit * 2) / 2;  // many ties, -0 among them
  for (const uint32_t top_k : {3u, 300u}) {
    for (const float top_p : {0.3f, 0.9f, 1.0f}) {
      ExpectTheSameDraws(logits, {.temperature = 1, .top_p = top_p, .top_k = top_k}, 2);
    }
  }
  ExpectTheSameDraws(std::vector<float>(500, 1.25f), {.temperature = 1, .top_p = 0.5f}, 3);
}

TEST(CudaSamplingTest, TheOrderOfTurnsDoesNotEnter) {
  const std::vector<float> logits = Logits(1100, 5, 2);
  cuda::InEveryOrder([&] {
    ExpectTheSameDraws(logits, {.temperature = 1}, 4);
    ExpectTheSameDraws(logits, {.temperature = 1, .top_p = 0.8f, .top_k = 100}, 1);
    ExpectTheSameDraws(logits, {.temperature = 0}, 1);
  });
}

}  // namespace
}  // namespace lockstep
