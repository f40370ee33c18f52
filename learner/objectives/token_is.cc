// PG-Token-IS and PG-Token-TIS:
//   rho_t  = pi(y_t) / mu(y_t)
//   loss_t = -sg(min(rho_t, C)) A log pi(y_t)
//   d loss_t / d log pi(y_t) = -min(rho_t, C) A
// C = infinity is Token-IS. Source: arXiv 2510.26788; a token weight is biased for sequence rewards.
#include "learner/objectives/objectives.h"

namespace lockstep {

void PolicyGradientTokenIs(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                           ObjectiveStats& stats) {
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    const double scale = -static_cast<double>(batch.advantage[i]) * batch.loss_weight[i];
    for (int32_t t = batch.offsets[i]; t < batch.offsets[i + 1]; ++t) {
      const double rho = ImportanceWeight(static_cast<double>(batch.log_pi[t]) - batch.log_mu[t]);
      const double weight = std::min(rho, static_cast<double>(params.is_clip));
      d_log_pi[t] = static_cast<float>(weight * scale);
      stats.loss += weight * scale * batch.log_pi[t];
      stats.tokens += 1;
      stats.clipped_high += rho > params.is_clip ? 1 : 0;
      stats.weights += 1;
      stats.weight_sum += weight;
      stats.weight_square_sum += weight * weight;
    }
  }
}

}  // namespace lockstep
