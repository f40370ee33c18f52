// CISPO: the ratio is clipped and stopped, so that every token keeps a gradient:
//   r_t    = pi(y_t) / pi_old(y_t)
//   loss_t = -sg(clip(r_t, 1 - clip_low, 1 + clip_high)) A log pi(y_t)
//   d loss_t / d log pi(y_t) = -clip(r_t, ...) A
// clip_low 1 leaves the lower side open. Source: MiniMax-M1, arXiv 2506.13585 eq. 4 and 5, which does not print its
// upper bound; 0.28 here is DAPO's.
#include "learner/objectives/objectives.h"

namespace lockstep {

void Cispo(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
           ObjectiveStats& stats) {
  const double low = 1.0 - params.clip_low, high = 1.0 + params.clip_high;
  const auto weight_of = [&](int32_t t) {
    const double ratio = ImportanceWeight(double{batch.log_pi[t]} - batch.log_pi_old[t]);
    const TokenWeight weight = ratio < low ? TokenWeight{low, TokenFate::kClippedLow} : Truncate(ratio, high);
    stats.AddWeight(weight.weight);
    return weight;
  };
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) WeightedLogProb(batch, i, weight_of, d_log_pi, stats);
}

}  // namespace lockstep
