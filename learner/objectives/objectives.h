// The functions behind the table in learner/objective.cc, and what they share.
#ifndef LOCKSTEP_LEARNER_OBJECTIVES_OBJECTIVES_H_
#define LOCKSTEP_LEARNER_OBJECTIVES_OBJECTIVES_H_

#include <algorithm>
#include <cmath>

#include "learner/objective.h"

namespace lockstep {

// Log ratios are clamped to +-20 before exp, so that a weight is finite (e^20 = 4.9e8) whatever the policies did; a
// weight that large has lost its meaning anyway. The same bound as verl's rollout correction.
inline constexpr double kMaxLogRatio = 20.0;

inline double ImportanceWeight(double log_ratio) {
  return std::exp(std::clamp(log_ratio, -kMaxLogRatio, kMaxLogRatio));
}

// policy_gradient.cc
void PolicyGradient(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                    ObjectiveStats& stats);
// token_is.cc
void PolicyGradientTokenIs(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                           ObjectiveStats& stats);
// sequence_is.cc
void PolicyGradientSequenceIs(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                              ObjectiveStats& stats);
void PolicyGradientSequenceMis(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                               ObjectiveStats& stats);
// grpo.cc
void Grpo(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi, ObjectiveStats& stats);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_OBJECTIVES_OBJECTIVES_H_
