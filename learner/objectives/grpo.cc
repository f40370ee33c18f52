// GRPO's clipped token objective (PPO's surrogate with a group advantage); also dr_grpo and dapo, which differ in
// advantage, aggregation and clip range alone:
//   r_t    = pi(y_t) / pi_old(y_t)
//   loss_t = max(-A r_t, -A clip(r_t, 1 - clip_low, 1 + clip_high))
//   d loss_t / d log pi(y_t) = -A r_t where the first term is the larger or the clip does not act, else 0
// Source: Schulman et al. 2017 eq. 7; Shao et al. 2024; Liu et al. 2025 (Dr.GRPO); Yu et al. 2025 (DAPO, clip 0.2 /
// 0.28). pi_old is recomputed by the training engine, or mu itself (algorithm.old_log_prob: rollout).
#include "learner/objectives/objectives.h"

namespace lockstep {

void Grpo(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
          ObjectiveStats& stats) {
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    ClippedSurrogate(
        batch, params, i, [](int32_t) { return TokenWeight{}; }, d_log_pi, stats);
  }
}

}  // namespace lockstep
