#include "client/run_outcome.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>

namespace lockstep {
namespace {

constexpr char kSeconds[] = "seconds.";

std::optional<double> Find(const Figures& figures, const char* name) {
  const auto found = figures.find(name);
  return found == figures.end() ? std::nullopt : std::optional<double>(found->second);
}

bool IsBad(const std::optional<double>& value) { return value.has_value() && !std::isfinite(*value); }

// The moving mean of rewards against its own past.
class CollapseWatch {
 public:
  bool Add(double reward) {
    window_.push_back(reward);
    if (window_.size() > kCollapseWindow) window_.pop_front();
    if (window_.size() < kCollapseWindow) return false;
    const double mean = std::accumulate(window_.begin(), window_.end(), 0.0) / kCollapseWindow;
    const bool fell = mean < best_ / 2;
    best_ = std::max(best_, mean);
    return fell;
  }

 private:
  std::deque<double> window_;
  double best_ = 0;
};

}  // namespace

RunOutcome SummarizeRun(const RunData& run, double target_reward) {
  RunOutcome outcome;
  outcome.steps = run.steps.size();
  CollapseWatch watch;
  for (const auto& [step, figures] : run.steps) {
    const bool skipped = Find(figures, "skipped").value_or(0) != 0;
    if (const auto total = Find(figures, "skipped_steps_total"); total.value_or(0) > 0) {
      outcome.skipped_updates = static_cast<uint64_t>(*total);
    }
    const auto reward = run.supervised ? std::nullopt : Find(figures, "reward_mean");
    bool collapsed = IsBad(reward) || (!skipped && (IsBad(Find(figures, "loss")) || IsBad(Find(figures, "grad_norm"))));
    if (reward.has_value() && std::isfinite(*reward)) {
      if (!outcome.first_reward.has_value()) outcome.first_reward = reward;
      outcome.last_reward = reward;
      outcome.best_reward = std::max(*reward, outcome.best_reward.value_or(*reward));
      if (*reward >= target_reward && !outcome.target_step.has_value()) outcome.target_step = step;
      collapsed |= watch.Add(*reward);
    }
    if (collapsed && !outcome.collapsed_step.has_value()) outcome.collapsed_step = step;
    if (const auto ratio = Find(figures, "max_abs_log_ratio"); ratio.has_value() && !run.supervised) {
      // A NaN stays: it is worse than any number.
      const double worst = outcome.max_abs_log_ratio.value_or(0);
      outcome.max_abs_log_ratio = std::isnan(worst) || std::isnan(*ratio) ? std::nan("") : std::max(worst, *ratio);
    }
    for (const auto& [name, value] : figures) {
      if (!std::isfinite(value)) continue;
      if (name == "seconds_total") outcome.seconds += value;
      if (name.rfind(kSeconds, 0) == 0) outcome.phase_seconds[name.substr(sizeof(kSeconds) - 1)] += value;
    }
  }
  return outcome;
}

}  // namespace lockstep
