// summary: the table of a finished run, from its metrics.jsonl, and the same as JSON.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/commands.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

// Protobuf's JSON writes 64-bit whole numbers as text and leaves zeros out.
double Number(const Json& step, const char* key) {
  const auto found = step.find(key);
  if (found == step.end()) return 0;
  if (found->is_number()) return found->get<double>();
  double value = 0;
  if (found->is_string() && absl::SimpleAtod(found->get<std::string>(), &value)) return value;
  return 0;
}

struct Summary {
  Json json;
  std::vector<std::pair<std::string, std::string>> rows;
};

absl::StatusOr<std::vector<Json>> ReadSteps(const std::string& run) {
  const std::string path = run + "/metrics.jsonl";
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, " cannot be read; give the folder of a run"));
  // A resumed run repeats the steps after its checkpoint: the last line of a step counts.
  std::map<int64_t, Json> steps;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.empty()) continue;
    Json step = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (step.is_discarded() || !step.is_object()) {
      return absl::DataLossError(absl::StrCat(path, ":", number, ": is not a JSON object; the file was damaged"));
    }
    if (step.contains("eval")) continue;  // a held-out evaluation
    const int64_t number_of_step = static_cast<int64_t>(Number(step, "step"));
    steps[number_of_step] = std::move(step);
  }
  if (steps.empty())
    return absl::NotFoundError(absl::StrCat(path, " holds no step; the run ended before its first one"));
  std::vector<Json> result;
  for (auto& [number, step] : steps) result.push_back(std::move(step));
  return result;
}

Summary Summarize(const std::vector<Json>& steps, const std::vector<std::pair<std::string, double>>& phases) {
  double tokens = 0, rollout_seconds = 0, abs_log_ratio = 0, kl_k1 = 0, kl_k3 = 0, largest = 0, choices = 0,
         differing = 0;
  std::map<std::string, double> seconds;
  for (const Json& step : steps) {
    const double n = Number(step, "response_tokens");
    tokens += n;
    abs_log_ratio += n * Number(step, "mean_abs_log_ratio");
    kl_k1 += n * Number(step, "kl_k1");
    kl_k3 += n * Number(step, "kl_k3");
    largest = std::max(largest, Number(step, "max_abs_log_ratio"));
    choices += Number(step, "router_choices");
    differing += Number(step, "router_choices") * Number(step, "router_mismatch");
    if (const auto found = step.find("seconds"); found != step.end() && found->is_object()) {
      for (const auto& [phase, value] : found->items()) {
        if (value.is_number()) seconds[phase] += value.get<double>();
      }
    }
  }
  rollout_seconds = seconds.count("rollout") != 0 ? seconds["rollout"] : 0;
  const Json& first = steps.front();
  const Json& last = steps.back();
  const double per_token = tokens > 0 ? 1 / tokens : 0;
  Summary summary;
  Json& out = summary.json;
  out["steps"] = steps.size();
  out["reward_start"] = Number(first, "reward_mean");
  out["reward_end"] = Number(last, "reward_mean");
  out["mean_abs_log_ratio"] = abs_log_ratio * per_token;
  out["max_abs_log_ratio"] = largest;
  out["kl_k1"] = kl_k1 * per_token;
  out["kl_k3"] = kl_k3 * per_token;
  if (choices > 0) out["router_mismatch"] = differing / choices;
  out["loss_scale"] = Number(last, "loss_scale");
  out["skipped_steps"] = static_cast<int64_t>(Number(last, "skipped_steps_total"));
  out["tokens_per_second"] = rollout_seconds > 0 ? tokens / rollout_seconds : 0;
  Json rewards = Json::array();
  for (const Json& step : steps) rewards.push_back(Number(step, "reward_mean"));
  out["rewards"] = rewards;
  out["seconds"] = Json::object();
  for (const auto& [phase, value] : phases) out["seconds"][phase] = value;
  for (const auto& [phase, value] : seconds) out["seconds"]["rl_" + phase] = value;

  const auto row = [&](const std::string& name, const std::string& value) { summary.rows.emplace_back(name, value); };
  row("steps", absl::StrCat(steps.size()));
  row("reward at start", absl::StrFormat("%.4f", Number(first, "reward_mean")));
  row("reward at end", absl::StrFormat("%.4f", Number(last, "reward_mean")));
  row("mean |log mu - log pi|", absl::StrFormat("%.3e", abs_log_ratio * per_token));
  row("max |log mu - log pi|", absl::StrFormat("%.3e", largest));
  row("KL(mu||pi), k1", absl::StrFormat("%.3e", kl_k1 * per_token));
  row("KL(mu||pi), k3", absl::StrFormat("%.3e", kl_k3 * per_token));
  if (choices > 0) row("experts chosen otherwise", absl::StrFormat("%.3g%%", 100 * differing / choices));
  row("loss scale", absl::StrFormat("%g", Number(last, "loss_scale")));
  row("skipped steps", absl::StrFormat("%d", static_cast<int64_t>(Number(last, "skipped_steps_total"))));
  row("rollout tokens/s", absl::StrFormat("%.0f", rollout_seconds > 0 ? tokens / rollout_seconds : 0));
  for (const auto& [phase, value] : out["seconds"].items()) {
    row("seconds: " + phase, absl::StrFormat("%.1f", value.get<double>()));
  }
  return summary;
}

}  // namespace

int SummaryCommand(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Arguments> split = SplitArguments(arguments, {"out=", "phase="});
  if (!split.ok()) return Fail(split.status(), 2);
  if (split->words.size() != 1) return Usage("usage: lockstep summary RUN [--out=FILE] [--phase=NAME:SECONDS ...]");
  std::vector<std::pair<std::string, double>> phases;
  for (const auto& [name, value] : split->flags) {
    if (name != "phase") continue;
    const size_t colon = value.find(':');
    double seconds = 0;
    if (colon == std::string::npos || !absl::SimpleAtod(value.substr(colon + 1), &seconds)) {
      return Usage("--phase=" + value + " is not NAME:SECONDS");
    }
    phases.emplace_back(value.substr(0, colon), seconds);
  }
  const absl::StatusOr<std::vector<Json>> steps = ReadSteps(split->words[0]);
  if (!steps.ok()) return Fail(steps.status());
  const Summary summary = Summarize(*steps, phases);
  for (const auto& [name, value] : summary.rows) std::printf("  %-28s %s\n", name.c_str(), value.c_str());
  if (const std::string out = split->Get("out"); !out.empty()) {
    std::ofstream file(out, std::ios::trunc);
    file << summary.json.dump(2) << "\n";
    file.close();
    if (!file.good()) return Fail(absl::UnavailableError(absl::StrCat("cannot write ", out)));
  }
  return 0;
}

}  // namespace lockstep
