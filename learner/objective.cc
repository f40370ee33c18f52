#include "learner/objective.h"

#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "learner/objectives/objectives.h"

namespace lockstep {
namespace {

constexpr float kNoClip = std::numeric_limits<float>::infinity();

// The constants C are the paper's: Seq-TIS 3 (its scripts), Token-TIS 2.
constexpr std::array kObjectives = {
    Objective{"pg", kNoClip, false, PolicyGradient},
    Objective{"pg_token_is", kNoClip, false, PolicyGradientTokenIs},
    Objective{"pg_token_tis", 2.0f, false, PolicyGradientTokenIs},
    Objective{"pg_seq_is", kNoClip, false, PolicyGradientSequenceIs},
    Objective{"pg_seq_tis", 3.0f, false, PolicyGradientSequenceIs},
    Objective{"pg_seq_mis", 3.0f, false, PolicyGradientSequenceMis},
    Objective{"grpo", kNoClip, true, Grpo},
};

}  // namespace

void ObjectiveStats::Add(const ObjectiveStats& other) {
  loss += other.loss;
  tokens += other.tokens;
  clipped_low += other.clipped_low;
  clipped_high += other.clipped_high;
  masked += other.masked;
  weights += other.weights;
  weight_sum += other.weight_sum;
  weight_square_sum += other.weight_square_sum;
}

double ObjectiveStats::EffectiveSampleSize() const {
  if (weights == 0 || weight_square_sum == 0) return 1.0;
  return weight_sum * weight_sum / (weights * weight_square_sum);
}

absl::StatusOr<const Objective*> FindObjective(std::string_view name) {
  for (const Objective& objective : kObjectives) {
    if (objective.name == name) return &objective;
  }
  std::vector<std::string> names;
  for (const Objective& objective : kObjectives) names.emplace_back(objective.name);
  return absl::InvalidArgumentError(
      absl::StrCat("algorithm.name is '", std::string(name), "'; known are ", absl::StrJoin(names, ", ")));
}

std::vector<std::string_view> ObjectiveNames() {
  std::vector<std::string_view> names;
  for (const Objective& objective : kObjectives) names.push_back(objective.name);
  return names;
}

absl::StatusOr<std::vector<float>> AggregationWeights(std::string_view kind, std::span<const int64_t> lengths,
                                                      int64_t max_tokens) {
  std::vector<float> weights(lengths.size());
  const double sequences = static_cast<double>(lengths.size());
  double tokens = 0;
  for (int64_t length : lengths) tokens += static_cast<double>(length);
  for (size_t i = 0; i < lengths.size(); ++i) {
    double denominator;
    if (kind == "constant") {
      denominator = static_cast<double>(max_tokens) * sequences;
    } else if (kind == "sequence_mean") {
      denominator = static_cast<double>(lengths[i]) * sequences;
    } else if (kind == "token_mean") {
      denominator = tokens;
    } else {
      return absl::InvalidArgumentError(absl::StrCat("algorithm.aggregation is '", std::string(kind),
                                                     "'; known are constant, sequence_mean, token_mean"));
    }
    weights[i] = denominator > 0 ? static_cast<float>(1.0 / denominator) : 0.0f;
  }
  return weights;
}

}  // namespace lockstep
