#include "learner/mismatch.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace lockstep {
namespace {

// A weight's log is kept from overflowing the sum of squares in double (e^700); nothing that is trained on is clamped.
constexpr double kMaxLogWeight = 340.0;

double Weight(double log_ratio) { return std::exp(std::clamp(log_ratio, -kMaxLogWeight, kMaxLogWeight)); }

double EffectiveSampleSize(double n, double sum, double square_sum) {
  return n > 0 && square_sum > 0 ? sum / square_sum * sum / n : 1.0;
}

double ChiSquare(double n, double square_sum) {
  return n > 0 ? std::min(square_sum / n, std::exp(kMaxReportedLogSquare)) - 1.0 : 0.0;
}

// Slope of y against x, by least squares with an intercept; 0 where all x are equal.
double Slope(double n, double x, double xx, double y, double xy) {
  const double spread = n * xx - x * x;
  return spread > 0 ? (n * xy - x * y) / spread : 0.0;
}

// Pearson's correlation; of a constant there is none, and the sums of equal values say 1.
double Correlation(double n, double x, double y, double xx, double yy, double xy) {
  const double spread_x = n * xx - x * x, spread_y = n * yy - y * y;
  if (spread_x <= 0 || spread_y <= 0) return x == y && xx == yy ? 1.0 : 0.0;
  return std::clamp((n * xy - x * y) / std::sqrt(spread_x) / std::sqrt(spread_y), -1.0, 1.0);
}

}  // namespace

void MismatchStats::AddToken(double log_mu, double log_pi) {
  const double l = log_pi - log_mu;
  const double p = std::exp(log_mu), q = std::exp(log_pi), w = Weight(l);
  k1_sum -= l;
  k2_sum += 0.5 * l * l;
  // expm1 keeps the digits of a small l.
  k3_sum += std::expm1(std::min(l, kMaxLogWeight)) - l;
  abs_sum += std::abs(l);
  outside += std::abs(w - 1.0) > kRatioBand ? 1 : 0;
  p_sum += p;
  q_sum += q;
  pp_sum += p * p;
  qq_sum += q * q;
  pq_sum += p * q;
  w_sum += w;
  ww_sum += w * w;
  abs_max = std::max(abs_max, std::abs(l));
  difference_max = std::max(difference_max, p - q);
  difference_negative_max = std::max(difference_negative_max, q - p);
}

void MismatchStats::AddSequences(std::span<const int32_t> offsets, std::span<const float> log_mu,
                                 std::span<const float> log_pi) {
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const int32_t begin = offsets[i], end = offsets[i + 1];
    if (begin == end) continue;
    double mu = 0, pi = 0, ratio = 0;
    for (int32_t t = begin; t < end; ++t) {
      AddToken(log_mu[t], log_pi[t]);
      mu += log_mu[t];
      pi += log_pi[t];
      ratio += double{log_pi[t]} - log_mu[t];
    }
    const double length = end - begin;
    const double weight = Weight(ratio);
    tokens += length;
    sequences += 1;
    length_sum += length;
    length_square_sum += length * length;
    ratio_sum += ratio;
    length_ratio_sum += length * ratio;
    sequence_w_sum += weight;
    sequence_ww_sum += weight * weight;
    mu_perplexity_sum += Weight(-mu / length);
    pi_perplexity_sum += Weight(-pi / length);
    perplexity_ratio_sum += Weight(-ratio / length);
    ratio_max = std::max(ratio_max, ratio);
    ratio_negative_max = std::max(ratio_negative_max, -ratio);
  }
}

std::vector<double*> MismatchStats::SumFields() {
  return {&tokens,
          &k1_sum,
          &k2_sum,
          &k3_sum,
          &abs_sum,
          &outside,
          &p_sum,
          &q_sum,
          &pp_sum,
          &qq_sum,
          &pq_sum,
          &w_sum,
          &ww_sum,
          &sequences,
          &length_sum,
          &length_square_sum,
          &ratio_sum,
          &length_ratio_sum,
          &sequence_w_sum,
          &sequence_ww_sum,
          &mu_perplexity_sum,
          &pi_perplexity_sum,
          &perplexity_ratio_sum};
}

std::vector<double*> MismatchStats::MaxFields() {
  return {&abs_max, &difference_max, &difference_negative_max, &ratio_max, &ratio_negative_max};
}

void MismatchStats::Add(const MismatchStats& other) {
  MismatchStats copy = other;
  const std::vector<double*> sums = SumFields(), more = copy.SumFields();
  for (size_t i = 0; i < sums.size(); ++i) *sums[i] += *more[i];
  const std::vector<double*> maxima = MaxFields(), others = copy.MaxFields();
  for (size_t i = 0; i < maxima.size(); ++i) *maxima[i] = std::max(*maxima[i], *others[i]);
}

MismatchReport MismatchStats::Report() const {
  MismatchReport report;
  if (tokens == 0) return report;
  report.kl_k1 = k1_sum / tokens;
  report.kl_k2 = k2_sum / tokens;
  report.kl_k3 = k3_sum / tokens;
  report.mean_abs_log_ratio = abs_sum / tokens;
  report.max_abs_log_ratio = abs_max;
  report.max_probability_difference = difference_max;
  report.min_probability_difference = 0.0 - difference_negative_max;
  report.ratio_outside = outside / tokens;
  report.probability_correlation = Correlation(tokens, p_sum, q_sum, pp_sum, qq_sum, pq_sum);
  report.effective_sample_size_token = EffectiveSampleSize(tokens, w_sum, ww_sum);
  report.chi_square_token = ChiSquare(tokens, ww_sum);
  report.rollout_perplexity = mu_perplexity_sum / sequences;
  report.training_perplexity = pi_perplexity_sum / sequences;
  report.perplexity_ratio = perplexity_ratio_sum / sequences;
  report.sequence_log_ratio_mean = ratio_sum / sequences;
  report.sequence_log_ratio_min = 0.0 - ratio_negative_max;
  report.sequence_log_ratio_max = ratio_max;
  report.sequence_log_ratio_slope =
      1000.0 * Slope(sequences, length_sum, length_square_sum, ratio_sum, length_ratio_sum);
  report.effective_sample_size_sequence = EffectiveSampleSize(sequences, sequence_w_sum, sequence_ww_sum);
  report.chi_square_sequence = ChiSquare(sequences, sequence_ww_sum);
  return report;
}

}  // namespace lockstep
