#include "proto/figures.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "proto/learner.pb.h"

namespace lockstep {
namespace {

using Json = nlohmann::json;

constexpr char kSeconds[] = "seconds.";

// False: the value is no number.
bool Number(const Json& value, double* number) {
  if (value.is_null()) {
    *number = std::numeric_limits<double>::quiet_NaN();
  } else if (value.is_boolean()) {
    *number = value.get<bool>() ? 1 : 0;
  } else if (value.is_number()) {
    *number = value.get<double>();
  } else {
    // Protobuf's JSON has 64-bit whole numbers as text.
    return value.is_string() && absl::SimpleAtod(value.get_ref<const std::string&>(), number);
  }
  return true;
}

void AddNumbers(const Json& object, const std::string& prefix, Figures* figures) {
  for (const auto& [name, value] : object.items()) {
    double number = 0;
    if (Number(value, &number)) (*figures)[absl::StrCat(prefix, name)] = number;
  }
}

}  // namespace

const std::vector<FigureSpec>& StepFigureSpecs() {
  static const auto* specs = new std::vector<FigureSpec>{
      {"step", ""},
      {"reward_mean", "train/reward"},
      {"response_length_mean", "train/response_length", true},
      {"kl_k1", "mismatch/kl_k1"},
      {"kl_k2", "mismatch/kl_k2"},
      {"kl_k3", "mismatch/kl_k3"},
      {"mean_abs_log_ratio", "mismatch/mean_abs_log_ratio"},
      {"max_abs_log_ratio", "mismatch/max_abs_log_ratio"},
      {"loss", "train/loss", true},
      {"entropy", "train/entropy", true},
      {"grad_norm", "optim/grad_norm", true},
      {"loss_scale", "optim/loss_scale", true},
      {"skipped", "optim/skipped", true},
      {"skipped_steps_total", "optim/skipped_steps_total", true},
      {"clip_fraction", "objective/clip_fraction"},
      {"staleness_mean", "train/staleness"},
      {"rollout_tokens_per_second", "perf/rollout_tokens_per_second"},
      {"train_tokens_per_second", "perf/train_tokens_per_second", true},
      {"response_tokens", "train/response_tokens", true},
      {"weight_version", "train/weight_version", true},
      {"weight_sync_bytes", "perf/weight_sync_bytes"},
      {"effective_sample_size", "objective/effective_sample_size"},
      {"samples", "train/samples", true},
      {"dropped_samples", "train/dropped_samples"},
      {"seconds_total", "perf/seconds_total", true},
      {"max_probability_difference", "mismatch/max_probability_difference"},
      {"min_probability_difference", "mismatch/min_probability_difference"},
      {"ratio_outside_fraction", "mismatch/ratio_outside_fraction"},
      {"probability_correlation", "mismatch/probability_correlation"},
      {"rollout_perplexity", "mismatch/rollout_perplexity"},
      {"training_perplexity", "mismatch/training_perplexity"},
      {"perplexity_ratio", "mismatch/perplexity_ratio"},
      {"sequence_log_ratio_mean", "mismatch/sequence_log_ratio_mean"},
      {"sequence_log_ratio_min", "mismatch/sequence_log_ratio_min"},
      {"sequence_log_ratio_max", "mismatch/sequence_log_ratio_max"},
      {"sequence_log_ratio_slope", "mismatch/sequence_log_ratio_slope"},
      {"effective_sample_size_token", "mismatch/effective_sample_size_token"},
      {"effective_sample_size_sequence", "mismatch/effective_sample_size_sequence"},
      {"chi_square_token", "mismatch/chi_square_token"},
      {"chi_square_sequence", "mismatch/chi_square_sequence"},
      {"mask_fraction", "objective/mask_fraction"},
      {"sequence_clip_fraction", "objective/sequence_clip_fraction"},
      {"sequence_mask_fraction", "objective/sequence_mask_fraction"},
      {"reference_kl", "objective/reference_kl"},
      {"kl_loss", "objective/kl_loss"},
      {"router_choices", "mismatch/router_choices"},
      {"router_mismatch", "mismatch/router_mismatch"},
      {"extra_groups", "train/extra_groups"},
      {"no_signal_groups", "train/no_signal_groups"},
  };
  return *specs;
}

absl::StatusOr<LineFigures> ParseFigures(const std::string& json) {
  const Json object = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("is not a JSON object");
  LineFigures line;
  double step = -1;
  const auto found = object.find("step");
  if (found == object.end() || !Number(*found, &step) || !(step >= 0 && step < 9e15) || step != std::floor(step)) {
    return absl::InvalidArgumentError("has no step");
  }
  line.step = static_cast<uint64_t>(step);
  if (const auto eval = object.find("eval"); eval != object.end() && eval->is_object()) {
    line.evaluation = true;
    AddNumbers(*eval, "", &line.figures);
    return line;
  }
  AddNumbers(object, "", &line.figures);
  if (const auto seconds = object.find("seconds"); seconds != object.end() && seconds->is_object()) {
    AddNumbers(*seconds, kSeconds, &line.figures);
  }
  return line;
}

absl::StatusOr<LineFigures> ParseLedgerEvaluation(const std::string& json) {
  v1::EvalSummary summary;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  if (!google::protobuf::util::JsonStringToMessage(json, &summary, options).ok()) {
    return absl::InvalidArgumentError("is not the JSON of an evaluation");
  }
  LineFigures line;
  line.step = summary.step();
  line.evaluation = true;
  for (const auto& [k, value] : summary.pass_at_k()) line.figures[absl::StrCat("pass@", k)] = value;
  for (const auto& [k, value] : summary.majority_at_k()) line.figures[absl::StrCat("maj@", k)] = value;
  line.figures["weight_version"] = static_cast<double>(summary.weight_version());
  line.figures["problems"] = static_cast<double>(summary.problems());
  line.figures["n"] = summary.n();
  line.figures["response_length_mean"] = summary.response_length_mean();
  line.figures["response_tokens"] = static_cast<double>(summary.response_tokens());
  line.figures["cut_by_length"] = summary.cut_by_length();
  line.figures["no_answer"] = summary.no_answer();
  line.figures["dropped_samples"] = static_cast<double>(summary.dropped_samples());
  line.figures["seconds"] = summary.seconds();
  return line;
}

std::vector<Scalar> StepScalars(const Figures& figures, bool supervised) {
  std::vector<Scalar> scalars;
  for (const FigureSpec& spec : StepFigureSpecs()) {
    if (spec.tag.empty() || (supervised && !spec.supervised)) continue;
    const auto found = figures.find(std::string(spec.name));
    if (found != figures.end()) scalars.push_back({std::string(spec.tag), found->second});
  }
  for (const auto& [name, value] : figures) {
    if (!absl::StartsWith(name, kSeconds)) continue;
    scalars.push_back({absl::StrCat("perf/seconds/", name.substr(sizeof(kSeconds) - 1)), value});
  }
  std::sort(scalars.begin(), scalars.end(), [](const Scalar& a, const Scalar& b) { return a.tag < b.tag; });
  return scalars;
}

std::vector<Scalar> EvaluationScalars(const Figures& figures) {
  std::vector<Scalar> scalars;
  for (const auto& [name, value] : figures) {
    const std::string tag = absl::StrReplaceAll(name, {{"pass@", "pass_at_"}, {"maj@", "majority_at_"}});
    scalars.push_back({absl::StrCat("eval/", tag), value});
  }
  return scalars;
}

}  // namespace lockstep
