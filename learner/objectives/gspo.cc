// GSPO: one ratio for the whole sequence, the geometric mean of its token ratios,
//   s      = exp(1/T sum_t (log pi(y_t) - log pi_old(y_t)))
//   s_t    = sg(s) pi(y_t) / sg(pi(y_t))          (equal to s; its gradient goes to each token)
//   loss_t = max(-A s_t, -A clip(s_t, 1 - clip_low, 1 + clip_high))
//   d loss_t / d log pi(y_t) = -A s where the clip does not act, else 0
// Source: Zheng et al. 2025, arXiv 2507.18071 eq. 5 and 14; arXiv 2510.26788's scripts: clip 3e-4 / 4e-4. mu does not
// enter: a mismatch is not corrected.
#include "learner/objectives/objectives.h"

namespace lockstep {

void Gspo(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
          ObjectiveStats& stats) {
  const double low = 1.0 - params.clip_low, high = 1.0 + params.clip_high;
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    SequenceTally tally(stats);
    const int32_t begin = batch.offsets[i], end = batch.offsets[i + 1];
    const double log_ratio = SequenceLogRatio(batch, i, batch.log_pi, batch.log_pi_old);
    const double ratio = ImportanceWeight(log_ratio / std::max(1, end - begin));
    const double advantage = batch.advantage[i];
    const double plain = -advantage * ratio;
    const double clipped = -advantage * std::clamp(ratio, low, high);
    const bool clip_acts = clipped > plain;
    for (int32_t t = begin; t < end; ++t) {
      d_log_pi[t] = clip_acts ? 0.0f : static_cast<float>(batch.loss_weight[i] * plain);
      stats.loss += batch.loss_weight[i] * std::max(plain, clipped);
      tally.Count(!clip_acts ? TokenFate::kKept : ratio < low ? TokenFate::kClippedLow : TokenFate::kClippedHigh);
    }
  }
}

}  // namespace lockstep
