// Draws one token from one row of logits and returns it with its log-prob under the distribution it was drawn from.
//
// z = logits * (1/temperature) in FP32. Plain temperature sampling: p(v) = exp(z[v] - lse), lse from Ops::LogSumExp, so
// log_prob = logits[v] * (1/temperature) - lse has the bits of Ops::LogProb. top_k keeps the k largest z, then top_p
// the smallest head of them (descending z, ties by token id) whose mass reaches top_p of theirs; what is left is
// renormalised, and log_prob is of that distribution. Greedy (temperature 0) takes the largest logit (ties: smallest
// id) with log_prob 0: its distribution has one token.
//
// The draw is an inverse CDF with one uniform of 52 bits: the smallest token id whose cumulated mass exceeds u * total
// (of the kept tokens). u is Philox(key = seed, counter = (group_id,
// sample_index << 32 | token_index)): a function of the sample and the position alone, whatever the batch, the server
// or the retry. Cost: a few passes over the vocabulary; nothing is sorted (top_k and top_p select by partition).
#ifndef LOCKSTEP_ROLLOUT_SERVER_SAMPLER_H_
#define LOCKSTEP_ROLLOUT_SERVER_SAMPLER_H_

#include <cstdint>
#include <optional>
#include <vector>

namespace lockstep {

struct SamplingTransform {
  float temperature = 1;
  float top_p = 1;
  uint32_t top_k = 0;
};

struct DrawKey {
  uint64_t seed = 0;
  uint64_t group_id = 0;
  uint32_t sample_index = 0;
  uint32_t token_index = 0;  // of the response
};

// In (0, 1).
double DrawUniform(const DrawKey& key);

struct Draw {
  int32_t token = 0;
  float log_prob = 0;
};

// Whether all `vocab_size` logits are finite.
bool AllFinite(const float* logits, int64_t vocab_size);

// Draws from rows of one logits buffer. One thread; keeps its scratch between calls.
class Sampler {
 public:
  // Prepares a row [vocab_size] of finite logits that stays valid for the draws. lse: Ops::LogSumExp(logits,
  // vocab_size, temperature); not used for temperature 0.
  void SetRow(const float* logits, int64_t vocab_size, const SamplingTransform& transform, float lse);
  // One draw; the samples of a group draw their first tokens from one row.
  Draw Sample(const DrawKey& key) const;

 private:
  void KeepTop();
  // How many of kept_[0, count), in descending order, have top_p of their mass. kept_ is reordered.
  template <typename Before>
  size_t SmallestHead(size_t count, const Before& before);
  Draw SampleAll(double u) const;
  Draw SampleKept(double u) const;

  const float* logits_ = nullptr;
  int64_t vocab_size_ = 0;
  SamplingTransform transform_;
  float inverse_temperature_ = 1;
  float lse_ = 0;
  int32_t greedy_token_ = 0;
  bool restricted_ = false;         // top_k or top_p is on
  std::vector<double> block_mass_;  // mass of the blocks before and including block b, not restricted
  std::vector<float> mass_;         // exp(z - largest z), restricted
  std::vector<int32_t> kept_;       // ascending ids
  std::vector<double> kept_mass_;   // cumulated
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_SAMPLER_H_
