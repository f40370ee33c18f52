// PG with a mask on the geometric mean of a sequence's token ratios, whose band does not widen or narrow with length:
//   g      = exp(1/T sum_t (log pi(y_t) - log mu(y_t))),  W = g^T
//   loss_t = -sg(f) A log pi(y_t)
//   pg_geo_rs:  f = 1[low <= g <= C]      (rejection only)
//   pg_geo_mis: f = W 1[low <= g <= C]    (rejection, and the importance weight of what is kept)
// Source: Liu, Li et al., 'When Speed Kills Stability' (2025), part 3; verl's rollout_rs seq_mean_k1, whose band of
// [0.999, 1.001] is the default here.
#include "learner/objectives/objectives.h"

namespace lockstep {
namespace {

void GeometricMask(const ObjectiveBatch& batch, const ObjectiveParams& params, bool weighted, std::span<float> d_log_pi,
                   ObjectiveStats& stats) {
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    const double log_ratio = SequenceLogRatio(batch, i, batch.log_pi, batch.log_mu);
    const double mean = log_ratio / std::max(1, batch.offsets[i + 1] - batch.offsets[i]);
    const TokenWeight weight =
        Mask(ImportanceWeight(mean), params.is_low, params.is_clip, weighted ? ImportanceWeight(log_ratio) : 1.0);
    stats.AddWeight(weight.weight);
    WeightedLogProb(
        batch, i, [&](int32_t) { return weight; }, d_log_pi, stats);
  }
}

}  // namespace

void PolicyGradientGeoRs(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                         ObjectiveStats& stats) {
  GeometricMask(batch, params, false, d_log_pi, stats);
}

void PolicyGradientGeoMis(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                          ObjectiveStats& stats) {
  GeometricMask(batch, params, true, d_log_pi, stats);
}

}  // namespace lockstep
