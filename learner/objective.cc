#include "learner/objective.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "learner/objectives/objectives.h"

namespace lockstep {
namespace {

struct Entry {
  std::string_view name;
  ObjectiveFunction* compute;
};

constexpr Entry kFunctions[] = {
    {"pg", PolicyGradient},
    {"reinforce", PolicyGradient},
    {"pg_token_is", PolicyGradientTokenIs},
    {"pg_token_tis", PolicyGradientTokenIs},
    {"pg_seq_is", PolicyGradientSequenceIs},
    {"pg_seq_tis", PolicyGradientSequenceIs},
    {"pg_seq_mis", PolicyGradientSequenceMis},
    {"pg_geo_rs", PolicyGradientGeoRs},
    {"pg_geo_mis", PolicyGradientGeoMis},
    {"grpo", Grpo},
    {"dr_grpo", Grpo},
    {"dapo", Grpo},
    {"grpo_token_tis", GrpoTokenTis},
    {"grpo_seq_tis", GrpoSequenceTis},
    {"grpo_seq_mis", GrpoSequenceMis},
    {"decoupled_ppo", GrpoTokenTis},  // C is infinity
    {"icepop", IcePop},
    {"gspo", Gspo},
    {"cispo", Cispo},
};

// One for each algorithm of the config's table.
const std::vector<Objective>& Objectives() {
  static const std::vector<Objective>* objectives = [] {
    auto* all = new std::vector<Objective>();
    for (const Entry& entry : kFunctions) {
      const AlgorithmSpec* spec = FindAlgorithm(entry.name);
      LOCKSTEP_CHECK(spec != nullptr, "every objective has a line in proto/algorithms.cc");
      all->push_back({entry.name, spec, entry.compute});
    }
    LOCKSTEP_CHECK(all->size() == Algorithms().size(), "every algorithm has a function");
    return all;
  }();
  return *objectives;
}

}  // namespace

ObjectiveParams ObjectiveParams::From(const v1::AlgorithmConfig& algorithm) {
  ObjectiveParams params;
  if (algorithm.is_clip() > 0) params.is_clip = algorithm.is_clip();
  params.clip_low = algorithm.clip_low();
  params.clip_high = algorithm.clip_high();
  params.is_low = algorithm.is_low();
  return params;
}

std::vector<double*> ObjectiveStats::Fields() {
  return {&loss,    &tokens,     &clipped_low,       &clipped_high,
          &masked,  &sequences,  &sequences_clipped, &sequences_masked,
          &weights, &weight_sum, &weight_square_sum, &kl_loss,
          &kl_sum};
}

void ObjectiveStats::Add(const ObjectiveStats& other) {
  ObjectiveStats copy = other;
  const std::vector<double*> to = Fields(), from = copy.Fields();
  for (size_t i = 0; i < to.size(); ++i) *to[i] += *from[i];
}

void ObjectiveStats::AddWeight(double weight) {
  weights += 1;
  weight_sum += weight;
  weight_square_sum += weight * weight;
}

double ObjectiveStats::EffectiveSampleSize() const {
  if (weights == 0 || weight_square_sum == 0) return 1.0;
  return weight_sum * weight_sum / (weights * weight_square_sum);
}

absl::StatusOr<const Objective*> FindObjective(std::string_view name) {
  for (const Objective& objective : Objectives()) {
    if (objective.name == name) return &objective;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("algorithm.name is '", std::string(name), "'; known are ", AlgorithmNames()));
}

std::vector<std::string_view> ObjectiveNames() {
  std::vector<std::string_view> names;
  for (const Objective& objective : Objectives()) names.push_back(objective.name);
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
