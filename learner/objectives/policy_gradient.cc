// PG (REINFORCE), no correction:
//   loss_t = -A log pi(y_t)
//   d loss_t / d log pi(y_t) = -A
// Source: Williams 1992; arXiv 2510.26788, the baseline without importance sampling. Biased when y is drawn from mu.
#include "learner/objectives/objectives.h"

namespace lockstep {

void PolicyGradient(const ObjectiveBatch& batch, const ObjectiveParams&, std::span<float> d_log_pi,
                    ObjectiveStats& stats) {
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    WeightedLogProb(
        batch, i, [](int32_t) { return TokenWeight{}; }, d_log_pi, stats);
  }
}

}  // namespace lockstep
