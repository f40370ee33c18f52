// The functions behind the table in learner/objective.cc, and the two shapes that nearly all of them have: a weighted
// log-prob, and PPO's clipped surrogate with a weight.
#ifndef LOCKSTEP_LEARNER_OBJECTIVES_OBJECTIVES_H_
#define LOCKSTEP_LEARNER_OBJECTIVES_OBJECTIVES_H_

#include <algorithm>
#include <cmath>

#include "learner/objective.h"

namespace lockstep {

// Log ratios are clamped to +-20 before exp, so that a weight is finite (e^20 = 4.9e8) whatever the policies did; a
// weight that large has lost its meaning anyway. The same bound as verl's rollout correction.
inline constexpr double kMaxLogRatio = 20.0;

inline double ImportanceWeight(double log_ratio) {
  return std::exp(std::clamp(log_ratio, -kMaxLogRatio, kMaxLogRatio));
}

// What became of a token's gradient.
enum class TokenFate { kKept, kClippedLow, kClippedHigh, kMasked };

// A stopped factor of a token's loss.
struct TokenWeight {
  double weight = 1;
  TokenFate fate = TokenFate::kKept;
};

inline TokenWeight Truncate(double ratio, double high) {
  return ratio > high ? TokenWeight{high, TokenFate::kClippedHigh} : TokenWeight{ratio};
}
// `value` where low <= ratio <= high, else 0.
inline TokenWeight Mask(double ratio, double low, double high, double value) {
  return ratio < low || ratio > high ? TokenWeight{0, TokenFate::kMasked} : TokenWeight{value};
}

// Sum over sequence i of numerator - denominator: the log ratio of the whole sequence.
inline double SequenceLogRatio(const ObjectiveBatch& batch, size_t i, std::span<const float> numerator,
                               std::span<const float> denominator) {
  double sum = 0;
  for (int32_t t = batch.offsets[i]; t < batch.offsets[i + 1]; ++t) sum += double{numerator[t]} - denominator[t];
  return sum;
}

// Counts one sequence: its tokens one by one, itself at the end.
class SequenceTally {
 public:
  explicit SequenceTally(ObjectiveStats& stats) : stats_(stats) {}
  ~SequenceTally() {
    stats_.sequences += 1;
    stats_.sequences_clipped += clipped_ ? 1 : 0;
    stats_.sequences_masked += masked_ ? 1 : 0;
  }
  SequenceTally(const SequenceTally&) = delete;
  SequenceTally& operator=(const SequenceTally&) = delete;
  void Count(TokenFate fate) {
    stats_.tokens += 1;
    stats_.clipped_low += fate == TokenFate::kClippedLow ? 1 : 0;
    stats_.clipped_high += fate == TokenFate::kClippedHigh ? 1 : 0;
    stats_.masked += fate == TokenFate::kMasked ? 1 : 0;
    clipped_ |= fate == TokenFate::kClippedLow || fate == TokenFate::kClippedHigh;
    masked_ |= fate == TokenFate::kMasked;
  }

 private:
  ObjectiveStats& stats_;
  bool clipped_ = false;
  bool masked_ = false;
};

// loss_t = -w_t A log pi(y_t), d loss_t / d log pi(y_t) = -w_t A, over sequence i. weight_of(t) gives w_t.
template <typename WeightOf>
void WeightedLogProb(const ObjectiveBatch& batch, size_t i, const WeightOf& weight_of, std::span<float> d_log_pi,
                     ObjectiveStats& stats) {
  SequenceTally tally(stats);
  const double scale = -static_cast<double>(batch.advantage[i]) * batch.loss_weight[i];
  for (int32_t t = batch.offsets[i]; t < batch.offsets[i + 1]; ++t) {
    const TokenWeight weight = weight_of(t);
    d_log_pi[t] = static_cast<float>(weight.weight * scale);
    stats.loss += weight.weight * scale * batch.log_pi[t];
    tally.Count(weight.fate);
  }
}

// With r_t = pi(y_t) / pi_old(y_t), over sequence i, weight_of(t) gives w_t:
//   loss_t = w_t max(-A r_t, -A clip(r_t, 1 - clip_low, 1 + clip_high))
//   d loss_t / d log pi(y_t) = -w_t A r_t where the first term is the larger or the clip does not act, else 0
template <typename WeightOf>
void ClippedSurrogate(const ObjectiveBatch& batch, const ObjectiveParams& params, size_t i, const WeightOf& weight_of,
                      std::span<float> d_log_pi, ObjectiveStats& stats) {
  SequenceTally tally(stats);
  const double low = 1.0 - params.clip_low, high = 1.0 + params.clip_high;
  const double advantage = batch.advantage[i];
  for (int32_t t = batch.offsets[i]; t < batch.offsets[i + 1]; ++t) {
    const TokenWeight weight = weight_of(t);
    const double scale = weight.weight * batch.loss_weight[i];
    const double ratio = ImportanceWeight(double{batch.log_pi[t]} - batch.log_pi_old[t]);
    const double plain = -advantage * ratio;
    const double clipped = -advantage * std::clamp(ratio, low, high);
    const bool clip_acts = clipped > plain;
    d_log_pi[t] = clip_acts ? 0.0f : static_cast<float>(scale * plain);
    stats.loss += scale * std::max(plain, clipped);
    if (weight.fate == TokenFate::kMasked || !clip_acts) {
      tally.Count(weight.fate);
    } else {
      tally.Count(ratio < low ? TokenFate::kClippedLow : TokenFate::kClippedHigh);
    }
  }
}

using ObjectiveFunction = void(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                               ObjectiveStats& stats);

ObjectiveFunction PolicyGradient;             // policy_gradient.cc
ObjectiveFunction PolicyGradientTokenIs;      // token_is.cc
ObjectiveFunction PolicyGradientSequenceIs;   // sequence_is.cc
ObjectiveFunction PolicyGradientSequenceMis;  // sequence_is.cc
ObjectiveFunction PolicyGradientGeoRs;        // geometric_mask.cc
ObjectiveFunction PolicyGradientGeoMis;       // geometric_mask.cc
ObjectiveFunction Grpo;                       // grpo.cc
ObjectiveFunction GrpoTokenTis;               // grpo_corrected.cc
ObjectiveFunction GrpoSequenceTis;            // grpo_corrected.cc
ObjectiveFunction GrpoSequenceMis;            // grpo_corrected.cc
ObjectiveFunction IcePop;                     // icepop.cc
ObjectiveFunction Gspo;                       // gspo.cc
ObjectiveFunction Cispo;                      // cispo.cc

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_OBJECTIVES_OBJECTIVES_H_
