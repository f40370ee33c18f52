// PG-Token-IS and PG-Token-TIS:
//   rho_t  = pi(y_t) / mu(y_t)
//   loss_t = -sg(min(rho_t, C)) A log pi(y_t)
//   d loss_t / d log pi(y_t) = -min(rho_t, C) A
// C = infinity is Token-IS. Source: arXiv 2510.26788; a token weight is biased for sequence rewards.
#include "learner/objectives/objectives.h"

namespace lockstep {

void PolicyGradientTokenIs(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                           ObjectiveStats& stats) {
  const auto weight_of = [&](int32_t t) {
    const TokenWeight weight = Truncate(ImportanceWeight(double{batch.log_pi[t]} - batch.log_mu[t]), params.is_clip);
    stats.AddWeight(weight.weight);
    return weight;
  };
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) WeightedLogProb(batch, i, weight_of, d_log_pi, stats);
}

}  // namespace lockstep
