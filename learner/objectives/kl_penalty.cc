// The KL penalty to a reference policy, added to any objective:
//   l_t    = clamp(log ref(y_t) - log pi(y_t), -40, 40)
//   loss_t = beta (e^l_t - l_t - 1)                    (the estimator k3, never negative)
//   d loss_t / d log pi(y_t) = beta (1 - e^l_t), 0 where the clamp acts
// Source: Shao et al. 2024 eq. 4 (GRPO); Schulman, 'Approximating KL divergence' (2020); the clamp is that of arXiv
// 2510.26788's code, whose runs all have beta 0.
#include "learner/objectives/objectives.h"

namespace lockstep {

constexpr double kMaxReferenceLogRatio = 40.0;

void AddKlPenalty(const ObjectiveBatch& batch, float beta, std::span<float> d_log_pi, ObjectiveStats& stats) {
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    const double scale = double{beta} * batch.loss_weight[i];
    for (int32_t t = batch.offsets[i]; t < batch.offsets[i + 1]; ++t) {
      const double exact = double{batch.log_ref[t]} - batch.log_pi[t];
      const double log_ratio = std::clamp(exact, -kMaxReferenceLogRatio, kMaxReferenceLogRatio);
      const double kl = std::expm1(log_ratio) - log_ratio;
      stats.kl_sum += kl;
      stats.kl_loss += scale * kl;
      if (log_ratio == exact) d_log_pi[t] += static_cast<float>(-scale * std::expm1(log_ratio));
    }
  }
}

}  // namespace lockstep
