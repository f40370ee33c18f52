// PG-Seq-IS, PG-Seq-TIS and PG-Seq-MIS: one weight for the whole sequence,
//   W      = exp(sum_t (log pi(y_t) - log mu(y_t)))
//   loss_t = -sg(f(W)) A log pi(y_t),  f(W) = W | min(W, C) | W 1[W <= C]
//   d loss_t / d log pi(y_t) = -f(W) A
// Source: arXiv 2510.26788. Seq-IS is unbiased: E_mu[W A grad log pi(y)] = E_pi[A grad log pi(y)]. The paper's scripts
// of the name seq_mis clamp W at 3, which is pg_seq_tis.
#include "learner/objectives/objectives.h"

namespace lockstep {
namespace {

template <typename Rule>
void SequenceWeighted(const ObjectiveBatch& batch, const Rule& rule, std::span<float> d_log_pi, ObjectiveStats& stats) {
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    const TokenWeight weight = rule(ImportanceWeight(SequenceLogRatio(batch, i, batch.log_pi, batch.log_mu)));
    stats.AddWeight(weight.weight);
    WeightedLogProb(
        batch, i, [&](int32_t) { return weight; }, d_log_pi, stats);
  }
}

}  // namespace

void PolicyGradientSequenceIs(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                              ObjectiveStats& stats) {
  SequenceWeighted(
      batch, [&](double ratio) { return Truncate(ratio, params.is_clip); }, d_log_pi, stats);
}

void PolicyGradientSequenceMis(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                               ObjectiveStats& stats) {
  SequenceWeighted(
      batch, [&](double ratio) { return Mask(ratio, 0, params.is_clip, ratio); }, d_log_pi, stats);
}

}  // namespace lockstep
