// How far the policy that trains (pi) is from the policy that sampled (mu), over response tokens.
//   log ratio d_t = log mu(y_t) - log pi(y_t)
//   k1 = mean d, k2 = mean d^2 / 2, k3 = mean(e^-d + d - 1): three estimators of KL(mu || pi), k3 never negative
// Source: Schulman, "Approximating KL divergence" (2020).
#ifndef LOCKSTEP_LEARNER_MISMATCH_H_
#define LOCKSTEP_LEARNER_MISMATCH_H_

#include <span>

namespace lockstep {

// Sums over tokens: micro-batches and ranks add up; the maximum is combined apart.
struct MismatchStats {
  double tokens = 0;
  double k1_sum = 0;
  double k2_sum = 0;
  double k3_sum = 0;
  double abs_sum = 0;
  double entropy_sum = 0;
  double abs_max = 0;

  void AddTokens(std::span<const float> log_mu, std::span<const float> log_pi, std::span<const float> entropy);
  void Add(const MismatchStats& other);
  double Mean(double sum) const { return tokens > 0 ? sum / tokens : 0; }
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_MISMATCH_H_
