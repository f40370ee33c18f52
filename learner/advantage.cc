#include "learner/advantage.h"

#include <cmath>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace lockstep {

absl::StatusOr<AdvantageKind> ParseAdvantageKind(std::string_view name) {
  if (name == "mean") return AdvantageKind::kMean;
  if (name == "mean_std") return AdvantageKind::kMeanStd;
  return absl::InvalidArgumentError(
      absl::StrCat("algorithm.advantage is '", std::string(name), "'; known are mean, mean_std"));
}

std::vector<float> GroupAdvantages(AdvantageKind kind, std::span<const double> rewards) {
  const double n = static_cast<double>(rewards.size());
  double mean = 0;
  for (double reward : rewards) mean += reward;
  if (n > 0) mean /= n;
  double divisor = 1;
  if (kind == AdvantageKind::kMeanStd) {
    double squares = 0;
    for (double reward : rewards) squares += (reward - mean) * (reward - mean);
    divisor = (n > 1 ? std::sqrt(squares / (n - 1)) : 0.0) + 1e-8;
  }
  std::vector<float> advantages;
  advantages.reserve(rewards.size());
  for (double reward : rewards) advantages.push_back(static_cast<float>((reward - mean) / divisor));
  return advantages;
}

}  // namespace lockstep
