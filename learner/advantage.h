// Advantages of one group of samples of the same prompt. Source: PAPER.md section 1 (Dr.GRPO and GRPO).
#ifndef LOCKSTEP_LEARNER_ADVANTAGE_H_
#define LOCKSTEP_LEARNER_ADVANTAGE_H_

#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace lockstep {

enum class AdvantageKind {
  kMean,     // A_i = R_i - mean(R); the mean includes i
  kMeanStd,  // (R_i - mean(R)) / (std + 1e-8), std unbiased (n - 1); 0 for a group of one
};

// "mean", "mean_std".
absl::StatusOr<AdvantageKind> ParseAdvantageKind(std::string_view name);
// Sums in double, ascending, so the result depends on the rewards in their order alone.
std::vector<float> GroupAdvantages(AdvantageKind kind, std::span<const double> rewards);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_ADVANTAGE_H_
