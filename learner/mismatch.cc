#include "learner/mismatch.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace lockstep {

void MismatchStats::AddTokens(std::span<const float> log_mu, std::span<const float> log_pi,
                              std::span<const float> entropy) {
  for (size_t t = 0; t < log_pi.size(); ++t) {
    const double d = static_cast<double>(log_mu[t]) - log_pi[t];
    k1_sum += d;
    k2_sum += 0.5 * d * d;
    // expm1 keeps the digits of a small d; the clamp keeps an outlier from being infinite.
    k3_sum += std::expm1(std::clamp(-d, -40.0, 40.0)) + d;
    abs_sum += std::abs(d);
    abs_max = std::max(abs_max, std::abs(d));
    if (!entropy.empty()) entropy_sum += entropy[t];
  }
  tokens += static_cast<double>(log_pi.size());
}

void MismatchStats::Add(const MismatchStats& other) {
  tokens += other.tokens;
  k1_sum += other.k1_sum;
  k2_sum += other.k2_sum;
  k3_sum += other.k3_sum;
  abs_sum += other.abs_sum;
  entropy_sum += other.entropy_sum;
  abs_max = std::max(abs_max, other.abs_max);
}

}  // namespace lockstep
