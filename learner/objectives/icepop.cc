// IcePop: GRPO's token loss (grpo.cc) with a two-sided mask on the token's ratio of training to sampling policy,
//   k_t    = pi_old(y_t) / mu(y_t)
//   loss_t = sg(k_t 1[low <= k_t <= C]) max(-A r_t, -A clip(r_t, ...))
// Source: Ling team, 'Every Step Evolves' (Ring-1T), arXiv 2510.18855; low 0.5, C 5.
#include "learner/objectives/objectives.h"

namespace lockstep {

void IcePop(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
            ObjectiveStats& stats) {
  const auto weight_of = [&](int32_t t) {
    const double ratio = ImportanceWeight(double{batch.log_pi_old[t]} - batch.log_mu[t]);
    const TokenWeight weight = Mask(ratio, params.is_low, params.is_clip, ratio);
    stats.AddWeight(weight.weight);
    return weight;
  };
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) ClippedSurrogate(batch, params, i, weight_of, d_log_pi, stats);
}

}  // namespace lockstep
