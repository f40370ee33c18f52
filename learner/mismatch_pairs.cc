#include "learner/mismatch_pairs.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/check.h"
#include "learner/mismatch.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

absl::StatusOr<PrecisionPair> ParsePair(const std::string& text) {
  const absl::Status bad = absl::InvalidArgumentError(absl::StrCat(
      "--pairs: '", text,
      "' is not LEARNER/ROLLOUT with dtypes fp16, bf16, fp32, and perhaps @native or @matched after it, as "
      "in bf16/fp16 or bf16/bf16@matched"));
  const std::vector<std::string> parts = absl::StrSplit(text, '@');
  const std::vector<std::string> dtypes = absl::StrSplit(parts[0], '/');
  if (parts.size() > 2 || dtypes.size() != 2) return bad;
  PrecisionPair pair;
  if (parts.size() == 2) {
    if (parts[1] != "native" && parts[1] != "matched") return bad;
    pair.learner.numerics = pair.rollout.numerics = parts[1] == "matched" ? Numerics::kMatched : Numerics::kNative;
  }
  const auto learner = ParseDType(dtypes[0]), rollout = ParseDType(dtypes[1]);
  if (!learner.ok() || !rollout.ok()) return bad;
  pair.learner.dtype = *learner;
  pair.rollout.dtype = *rollout;
  return pair;
}

// Seven significant digits: what an FP32 log-prob is worth, and short in the file.
double Rounded(double value) {
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%.7g", value);
  return std::strtod(digits, nullptr);
}

// Differences of probabilities, which MismatchReport has extrema of only.
struct Differences {
  double sum = 0, max = 0;
};

}  // namespace

std::string Precision::Name() const {
  return absl::StrCat(std::string(DTypeName(dtype)), numerics == Numerics::kMatched ? " matched" : " native");
}

std::string PrecisionPair::Name() const {
  return absl::StrCat(std::string(DTypeName(learner.dtype)), "/", std::string(DTypeName(rollout.dtype)),
                      learner.numerics == Numerics::kMatched ? "@matched" : "");
}

absl::StatusOr<std::vector<PrecisionPair>> ParsePrecisionPairs(const std::string& text) {
  std::vector<PrecisionPair> pairs;
  for (const std::string& part : std::vector<std::string>(absl::StrSplit(text, ','))) {
    const auto pair = ParsePair(part);
    if (!pair.ok()) return pair.status();
    for (const PrecisionPair& other : pairs) {
      if (other.Name() == pair->Name()) {
        return absl::InvalidArgumentError(absl::StrCat("--pairs names ", other.Name(), " twice"));
      }
    }
    pairs.push_back(*pair);
  }
  return pairs;
}

LengthFit FitLength(const std::vector<double>& lengths, const std::vector<double>& log_ratios) {
  LOCKSTEP_CHECK(lengths.size() == log_ratios.size(), "a length each");
  LengthFit fit;
  const auto n = static_cast<double>(lengths.size());
  double x = 0, y = 0, xx = 0, xy = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    x += lengths[i];
    y += log_ratios[i];
    xx += lengths[i] * lengths[i];
    xy += lengths[i] * log_ratios[i];
  }
  if (xx > 0) fit.slope_through_origin = 1000 * xy / xx;
  const double spread = n * xx - x * x;  // exact: lengths are whole numbers
  if (spread > 0) {
    fit.has_slope = true;
    const double slope = (n * xy - x * y) / spread;
    fit.slope = 1000 * slope;
    fit.intercept = (y - slope * x) / n;
  }
  return fit;
}

std::vector<size_t> EvenIndices(size_t of, size_t count) {
  std::vector<size_t> indices;
  count = std::min(count, of);
  for (size_t i = 0; i < count; ++i) indices.push_back(i * of / count);
  return indices;
}

Json PairReport(const PrecisionPair& pair, const LogProbLists& log_mu, const LogProbLists& log_pi,
                size_t max_token_points) {
  LOCKSTEP_CHECK(log_mu.size() == log_pi.size(), "the same sequences");
  MismatchStats stats;
  Differences differences;
  std::vector<double> lengths, log_ratios;
  std::vector<std::pair<double, double>> tokens;  // mu, pi
  for (size_t i = 0; i < log_mu.size(); ++i) {
    LOCKSTEP_CHECK(log_mu[i].size() == log_pi[i].size(), "the same tokens");
    if (log_mu[i].empty()) continue;
    const std::vector<int32_t> offsets = {0, static_cast<int32_t>(log_mu[i].size())};
    stats.AddSequences(offsets, log_mu[i], log_pi[i]);
    double log_ratio = 0;
    for (size_t t = 0; t < log_mu[i].size(); ++t) {
      tokens.emplace_back(std::exp(double{log_mu[i][t]}), std::exp(double{log_pi[i][t]}));
      const double difference = std::abs(tokens.back().second - tokens.back().first);
      differences.sum += difference;
      differences.max = std::max(differences.max, difference);
      log_ratio += double{log_pi[i][t]} - log_mu[i][t];
    }
    lengths.push_back(static_cast<double>(log_mu[i].size()));
    log_ratios.push_back(log_ratio);
  }
  const MismatchReport report = stats.Report();
  const LengthFit fit = FitLength(lengths, log_ratios);
  Json out;
  out["pair"] = pair.Name();
  out["learner_dtype"] = std::string(DTypeName(pair.learner.dtype));
  out["rollout_dtype"] = std::string(DTypeName(pair.rollout.dtype));
  out["numerics"] = pair.learner.numerics == Numerics::kMatched ? "matched" : "native";
  out["num_tokens"] = tokens.size();
  out["num_sequences"] = lengths.size();
  out["kl_k1"] = report.kl_k1;
  out["kl_k3"] = report.kl_k3;
  out["mean_abs_log_ratio"] = report.mean_abs_log_ratio;
  out["max_abs_log_ratio"] = report.max_abs_log_ratio;
  out["mean_abs_probability_difference"] = tokens.empty() ? 0.0 : differences.sum / static_cast<double>(tokens.size());
  out["max_abs_probability_difference"] = differences.max;
  out["probability_correlation"] = report.probability_correlation;
  out["sequence_kl"] = 0.0 - report.sequence_log_ratio_mean;
  out["slope"] = fit.has_slope ? Json(fit.slope) : Json(nullptr);
  out["intercept"] = fit.has_slope ? Json(fit.intercept) : Json(nullptr);
  out["slope_through_origin"] = fit.slope_through_origin;
  Json& points = out["token_points"];
  points = {{"count", 0}, {"of", tokens.size()}, {"mu", Json::array()}, {"pi", Json::array()}};
  for (size_t index : EvenIndices(tokens.size(), max_token_points)) {
    points["mu"].push_back(Rounded(tokens[index].first));
    points["pi"].push_back(Rounded(tokens[index].second));
  }
  points["count"] = points["mu"].size();
  out["sequence_points"] = {{"length", Json::array()}, {"log_ratio", Json::array()}};
  for (size_t i = 0; i < lengths.size(); ++i) {
    out["sequence_points"]["length"].push_back(static_cast<int64_t>(lengths[i]));
    out["sequence_points"]["log_ratio"].push_back(Rounded(log_ratios[i]));
  }
  return out;
}

}  // namespace lockstep
