// PG-Seq-IS, PG-Seq-TIS and PG-Seq-MIS: one weight for the whole sequence,
//   W      = exp(sum_t (log pi(y_t) - log mu(y_t)))
//   loss_t = -sg(f(W)) A log pi(y_t),  f(W) = W | min(W, C) | W 1[W <= C]
//   d loss_t / d log pi(y_t) = -f(W) A
// Source: arXiv 2510.26788. Seq-IS is unbiased: E_mu[W A grad log pi(y)] = E_pi[A grad log pi(y)].
#include "learner/objectives/objectives.h"

namespace lockstep {
namespace {

void SequenceWeighted(const ObjectiveBatch& batch, const ObjectiveParams& params, bool mask, std::span<float> d_log_pi,
                      ObjectiveStats& stats) {
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    const int32_t begin = batch.offsets[i], end = batch.offsets[i + 1];
    double log_ratio = 0;
    for (int32_t t = begin; t < end; ++t) log_ratio += static_cast<double>(batch.log_pi[t]) - batch.log_mu[t];
    const double ratio = ImportanceWeight(log_ratio);
    const bool over = ratio > params.is_clip;
    const double weight = !over ? ratio : mask ? 0.0 : static_cast<double>(params.is_clip);
    const double scale = -weight * batch.advantage[i] * batch.loss_weight[i];
    for (int32_t t = begin; t < end; ++t) {
      d_log_pi[t] = static_cast<float>(scale);
      stats.loss += scale * batch.log_pi[t];
    }
    stats.tokens += end - begin;
    if (over) (mask ? stats.masked : stats.clipped_high) += end - begin;
    stats.weights += 1;
    stats.weight_sum += weight;
    stats.weight_square_sum += weight * weight;
  }
}

}  // namespace

void PolicyGradientSequenceIs(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                              ObjectiveStats& stats) {
  SequenceWeighted(batch, params, false, d_log_pi, stats);
}

void PolicyGradientSequenceMis(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                               ObjectiveStats& stats) {
  SequenceWeighted(batch, params, true, d_log_pi, stats);
}

}  // namespace lockstep
