// GRPO's clipped token objective (PPO's surrogate with a group advantage):
//   r_t    = pi(y_t) / pi_old(y_t)
//   loss_t = max(-A r_t, -A clip(r_t, 1 - clip_low, 1 + clip_high))
//   d loss_t / d log pi(y_t) = -A r_t where the first term is the larger or the clip does not act, else 0
// Source: Schulman et al. 2017 eq. 7; Shao et al. 2024; arXiv 2510.26788 (clip 0.2 / 0.2, 0.28 with 'clip higher').
// pi_old is recomputed by the training engine, or mu itself (algorithm.old_log_prob: rollout).
#include "learner/objectives/objectives.h"

namespace lockstep {

void Grpo(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
          ObjectiveStats& stats) {
  const double low = 1.0 - params.clip_low, high = 1.0 + params.clip_high;
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    const double advantage = batch.advantage[i];
    const double loss_weight = batch.loss_weight[i];
    for (int32_t t = batch.offsets[i]; t < batch.offsets[i + 1]; ++t) {
      const double ratio = ImportanceWeight(static_cast<double>(batch.log_pi[t]) - batch.log_pi_old[t]);
      const double plain = -advantage * ratio;
      const double clipped = -advantage * std::clamp(ratio, low, high);
      const bool clip_acts = clipped > plain;
      d_log_pi[t] = clip_acts ? 0.0f : static_cast<float>(loss_weight * plain);
      stats.loss += loss_weight * std::max(plain, clipped);
      stats.tokens += 1;
      if (clip_acts) (ratio < low ? stats.clipped_low : stats.clipped_high) += 1;
    }
  }
}

}  // namespace lockstep
