// How far the policy that trains (pi) is from the policy that sampled (mu), over response tokens and over responses.
// All figures come from sums (and extrema) that add up over micro-batches and ranks; what is derived from them is in
// MismatchReport.
//   token log ratio     l_t = log pi(y_t) - log mu(y_t)
//   sequence log ratio  L_i = sum_t l_t over the response i, T_i its length
// Sources: Schulman, "Approximating KL divergence" (2020) for k1, k2, k3; arXiv 2510.26788 fig. 2 for L against T;
// verl's rollout correction metrics for perplexities, chi-square and names. Products of ratios are sums of log ratios.
#ifndef LOCKSTEP_LEARNER_MISMATCH_H_
#define LOCKSTEP_LEARNER_MISMATCH_H_

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace lockstep {

// A token whose ratio pi / mu is outside of [1 - this, 1 + this] is counted in ratio_outside.
inline constexpr double kRatioBand = 0.01;
// What is reported of a chi-square is at most e^40 - 1, verl's bound (a log ratio of 20, squared).
inline constexpr double kMaxReportedLogSquare = 40.0;

struct MismatchReport {
  // Tokens. KL(mu || pi): k1 = mean(-l), may be negative; k2 = mean(l^2) / 2; k3 = mean(e^l - l - 1).
  double kl_k1 = 0, kl_k2 = 0, kl_k3 = 0;
  double mean_abs_log_ratio = 0, max_abs_log_ratio = 0;
  double max_probability_difference = 0, min_probability_difference = 0;  // of mu(y_t) - pi(y_t)
  double ratio_outside = 0;                                               // fraction of tokens, see kRatioBand
  double probability_correlation = 1;                                     // Pearson, of mu(y_t) and pi(y_t)
  double effective_sample_size_token = 1;                                 // (sum w)^2 / (n sum w^2), w = e^l
  double chi_square_token = 0;                                            // mean(w^2) - 1
  // Sequences. Perplexity: mean over responses of exp(-mean_t log p); ratio: mean of exp(-L_i / T_i).
  double rollout_perplexity = 0, training_perplexity = 0, perplexity_ratio = 1;
  double sequence_log_ratio_mean = 0, sequence_log_ratio_min = 0, sequence_log_ratio_max = 0;
  double sequence_log_ratio_slope = 0;  // least squares of L against T, with an intercept; nats per 1,000 tokens
  double effective_sample_size_sequence = 1;
  double chi_square_sequence = 0;
};

struct MismatchStats {
  // Sums over tokens; p = mu(y_t), q = pi(y_t), w = e^l.
  double tokens = 0;
  double k1_sum = 0, k2_sum = 0, k3_sum = 0, abs_sum = 0, outside = 0;
  double p_sum = 0, q_sum = 0, pp_sum = 0, qq_sum = 0, pq_sum = 0;
  double w_sum = 0, ww_sum = 0;
  // Sums over sequences that have tokens; W = e^L.
  double sequences = 0;
  double length_sum = 0, length_square_sum = 0, ratio_sum = 0, length_ratio_sum = 0;  // of T, T^2, L, T L
  double sequence_w_sum = 0, sequence_ww_sum = 0;
  double mu_perplexity_sum = 0, pi_perplexity_sum = 0, perplexity_ratio_sum = 0;
  // Extrema; a minimum is kept as the maximum of the negative.
  double abs_max = 0;
  double difference_max = -std::numeric_limits<double>::infinity();
  double difference_negative_max = -std::numeric_limits<double>::infinity();
  double ratio_max = -std::numeric_limits<double>::infinity();
  double ratio_negative_max = -std::numeric_limits<double>::infinity();

  // Sequence i is tokens [offsets[i], offsets[i + 1]) of log_mu and log_pi.
  void AddSequences(std::span<const int32_t> offsets, std::span<const float> log_mu, std::span<const float> log_pi);
  void Add(const MismatchStats& other);
  MismatchReport Report() const;

  // For adding up over ranks: sums, and what takes the maximum.
  std::vector<double*> SumFields();
  std::vector<double*> MaxFields();

 private:
  void AddToken(double log_mu, double log_pi);
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_MISMATCH_H_
