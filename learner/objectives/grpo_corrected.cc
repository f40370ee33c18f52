// GRPO's token loss (grpo.cc) times a stopped weight that corrects pi_old against mu:
//   GRPO-Token-TIS: sg(min(rho_t, C)),      rho_t = pi_old(y_t) / mu(y_t)
//   GRPO-Seq-TIS:   sg(min(W, C)),          W = prod_t rho_t over the whole sequence
//   GRPO-Seq-MIS:   sg(W 1[W <= C])
//   decoupled PPO:  sg(rho_t), no bound; pi_old is then the proximal policy and mu the behaviour policy
// Source: arXiv 2510.26788 and its scripts (C = 2 for tokens, 10 for Seq-MIS); Yao, Liu et al. 2025 (TIS); Hilton et
// al. 2022 and Fu et al. 2025 (AReaL), decoupled PPO. The weight is refreshed once a step, r_t at each update.
#include "learner/objectives/objectives.h"

namespace lockstep {
namespace {

template <typename Rule>
void SequenceCorrected(const ObjectiveBatch& batch, const ObjectiveParams& params, const Rule& rule,
                       std::span<float> d_log_pi, ObjectiveStats& stats) {
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
    const TokenWeight weight = rule(ImportanceWeight(SequenceLogRatio(batch, i, batch.log_pi_old, batch.log_mu)));
    stats.AddWeight(weight.weight);
    ClippedSurrogate(
        batch, params, i, [&](int32_t) { return weight; }, d_log_pi, stats);
  }
}

}  // namespace

void GrpoTokenTis(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                  ObjectiveStats& stats) {
  const auto weight_of = [&](int32_t t) {
    const double ratio = ImportanceWeight(double{batch.log_pi_old[t]} - batch.log_mu[t]);
    const TokenWeight weight = Truncate(ratio, params.is_clip);
    stats.AddWeight(weight.weight);
    return weight;
  };
  for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) ClippedSurrogate(batch, params, i, weight_of, d_log_pi, stats);
}

void GrpoSequenceTis(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                     ObjectiveStats& stats) {
  SequenceCorrected(
      batch, params, [&](double ratio) { return Truncate(ratio, params.is_clip); }, d_log_pi, stats);
}

void GrpoSequenceMis(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                     ObjectiveStats& stats) {
  SequenceCorrected(
      batch, params, [&](double ratio) { return Mask(ratio, 0, params.is_clip, ratio); }, d_log_pi, stats);
}

}  // namespace lockstep
