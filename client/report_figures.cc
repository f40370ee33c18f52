#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "client/html.h"
#include "client/report_page.h"

namespace lockstep {
namespace {

constexpr int kWidth = 560, kHeight = 350;  // two beside each other on a page

struct FigureOnPage {
  std::string title;   // below the picture
  std::string figure;  // its name (proto/figures.h)
  std::string y_label;
  bool log_y = false;
  FigureSource source = FigureSource::kSteps;
  bool near_one = false;  // drawn as its distance from 1 where it never leaves it far: its ticks would all read "1"
};

struct Section {
  std::string title;
  std::vector<FigureOnPage> figures;
};

// The largest K of figures "pass@K" of the evaluations.
int LargestK(const Report& report) {
  int largest = 0;
  for (const RunGroup& group : report.groups) {
    for (const RunData* run : group.runs) {
      for (const auto& [step, figures] : run->evaluations) {
        for (const auto& [name, value] : figures) {
          int k = 0;
          if (name.rfind("pass@", 0) == 0 && absl::SimpleAtoi(name.substr(5), &k)) largest = std::max(largest, k);
        }
      }
    }
  }
  return largest;
}

std::vector<Section> Sections(const Report& report) {
  constexpr FigureSource kEvaluations = FigureSource::kEvaluations;
  Section learning{"Learning",
                   {{"Reward, mean of the step's samples", "reward_mean", "reward"},
                    {"Held-out evaluation: pass@1", "pass@1", "pass@1", false, kEvaluations}}};
  if (const int k = LargestK(report); k > 1) {
    const std::string pass = absl::StrCat("pass@", k), majority = absl::StrCat("maj@", k);
    learning.figures.push_back({"Held-out evaluation: " + pass, pass, pass, false, kEvaluations});
    learning.figures.push_back({"Held-out evaluation: " + majority, majority, majority, false, kEvaluations});
  }
  const std::vector<FigureOnPage> more = {
      {"Loss", "loss", "loss"},
      {"Held-out evaluation: response length", "response_length_mean", "tokens", false, kEvaluations},
      {"Response length, mean", "response_length_mean", "tokens"},
      {"Entropy of π over response tokens, mean", "entropy", "nats"},
      {"KL penalty's part of the loss", "kl_loss", "loss"},
      {"KL to the reference policy (k3)", "reference_kl", "nats"},
      {"Samples dropped", "dropped_samples", "samples"},
      {"Staleness of the samples, mean", "staleness_mean", "weight versions"},
  };
  learning.figures.insert(learning.figures.end(), more.begin(), more.end());
  return {
      learning,
      {"Mismatch of the sampling policy μ and the trained policy π",
       {{"KL(μ‖π), estimator k1: mean of log μ − log π", "kl_k1", "nats"},
        {"KL(μ‖π), estimator k3 (log scale)", "kl_k3", "nats", true},
        {"Mean |log μ − log π| (log scale)", "mean_abs_log_ratio", "nats", true},
        {"Largest |log μ − log π| (log scale)", "max_abs_log_ratio", "nats", true},
        {"Log ratio of a response, mean: sum of log π − log μ", "sequence_log_ratio_mean", "nats"},
        {"Log ratio of a response, least", "sequence_log_ratio_min", "nats"},
        {"Log ratio of a response, greatest", "sequence_log_ratio_max", "nats"},
        {"Slope of a response's log ratio against its length", "sequence_log_ratio_slope", "nats / 1,000 tokens"},
        {"Effective sample size of π/μ, tokens", "effective_sample_size_token", "fraction", false, FigureSource::kSteps,
         true},
        {"Effective sample size of π/μ, responses", "effective_sample_size_sequence", "fraction", false,
         FigureSource::kSteps, true},
        {"χ² of π/μ, tokens (log scale)", "chi_square_token", "χ²", true},
        {"χ² of π/μ, responses (log scale)", "chi_square_sequence", "χ²", true},
        {"Tokens with π/μ outside of [0.99, 1.01]", "ratio_outside_fraction", "fraction"},
        {"Correlation of μ and π over tokens", "probability_correlation", "Pearson's r", false, FigureSource::kSteps,
         true},
        {"Perplexity of training over that of rollout, mean", "perplexity_ratio", "ratio", false, FigureSource::kSteps,
         true}}},
      {"Objective and optimiser",
       {{"Tokens whose weight or ratio met a bound", "clip_fraction", "fraction"},
        {"Tokens left out by a mask", "mask_fraction", "fraction"},
        {"Responses with a token that met a bound", "sequence_clip_fraction", "fraction"},
        {"Responses with a token left out by a mask", "sequence_mask_fraction", "fraction"},
        {"Effective sample size of the weights trained with", "effective_sample_size", "fraction", false,
         FigureSource::kSteps, true},
        {"Gradient norm before clipping (log scale)", "grad_norm", "norm", true},
        {"Loss scale (log scale)", "loss_scale", "scale", true},
        {"Updates skipped for a gradient that is not finite", "skipped_steps_total", "updates so far"}}},
      {"Time",
       {{"Seconds of a step", "seconds_total", "seconds"},
        {"Rollout throughput", "rollout_tokens_per_second", "tokens/s"},
        {"Training throughput", "train_tokens_per_second", "tokens/s"},
        {"Recomputing old log-probs", "seconds.old_log_prob", "seconds a step"}}},
  };
}

struct Drawn {
  std::vector<PlotSeries> series;
  size_t points = 0;
  double low = INFINITY, high = -INFINITY;
  // But for what taking means rounds.
  bool constant() const { return high - low <= 1e-12 * std::max(std::abs(low), std::abs(high)); }
};

constexpr double kNearOne = 0.01;

// Values that never leave 1 far are drawn as their distance from it: 1 - x on a logarithmic axis where none is above,
// else x - 1. Returns what is drawn of a figure, as "1 − %s"; "%s" where nothing is to be done.
std::string TakeFromOne(Drawn* drawn, bool* log_y) {
  if (drawn->low < 1 - kNearOne || drawn->high > 1 + kNearOne) return "%s";
  *log_y = drawn->high <= 1;
  for (PlotSeries& series : drawn->series) {
    for (auto* values : {&series.y, &series.low, &series.high}) {
      for (double& value : *values) value = *log_y ? 1 - value : value - 1;
    }
    if (*log_y) std::swap(series.low, series.high);
  }
  drawn->high = *log_y ? 1 - drawn->low : drawn->high - 1;
  return *log_y ? "1 − %s" : "%s − 1";
}

Drawn Curves(const Report& report, const FigureOnPage& figure) {
  static const std::vector<FigureSpec>& specs = StepFigureSpecs();
  const auto spec =
      std::find_if(specs.begin(), specs.end(), [&](const FigureSpec& s) { return s.name == figure.figure; });
  Drawn drawn;
  for (size_t i = 0; i < report.groups.size(); ++i) {
    const RunGroup& group = report.groups[i];
    // A supervised step's summary has zeros where nothing was sampled.
    if (group.runs[0]->supervised && spec != specs.end() && !spec->supervised) continue;
    PlotSeries series = GroupCurve(group, figure.source, figure.figure);
    if (series.x.empty()) continue;
    series.look = static_cast<int>(i);
    if (report.groups.size() == 1) series.name = "";
    drawn.points += series.x.size();
    for (const auto* values : {&series.y, &series.low, &series.high}) {
      for (const double value : *values) {
        drawn.low = std::min(drawn.low, value);
        drawn.high = std::max(drawn.high, value);
      }
    }
    drawn.series.push_back(std::move(series));
  }
  return drawn;
}

}  // namespace

absl::StatusOr<std::string> ReportFigures(const Report& report) {
  std::string html;
  std::string constants;
  int number = 0;
  for (const Section& section : Sections(report)) {
    std::string pictures;
    for (const FigureOnPage& figure : section.figures) {
      Drawn drawn = Curves(report, figure);
      if (drawn.points == 0) continue;
      if (drawn.constant() && drawn.points > 1) {
        absl::StrAppend(&constants, "<div>", HtmlText(figure.title), ": <b>", absl::StrFormat("%.6g", drawn.low),
                        "</b></div>\n");
        continue;
      }
      bool log_y = figure.log_y;
      const std::string drawn_as = figure.near_one ? TakeFromOne(&drawn, &log_y) : "%s";
      const std::string title =
          absl::StrReplaceAll(drawn_as, {{"%s", figure.title}}) + (log_y && !figure.log_y ? " (log scale)" : "");
      Plot plot;
      plot.width = kWidth;
      plot.height = kHeight;
      plot.x_label = "step";
      plot.y_label = absl::StrReplaceAll(drawn_as, {{"%s", figure.y_label}});
      plot.log_y = log_y && drawn.high > 0;
      plot.series = std::move(drawn.series);
      const auto svg = report.render(plot);
      if (!svg.ok()) return svg.status();
      ++number;
      absl::StrAppend(&pictures, "<figure>", InlineSvg(*svg, absl::StrCat("f", number, "-"), title),
                      "<figcaption>Figure ", number, ". ", HtmlText(title), "</figcaption></figure>\n");
    }
    if (pictures.empty()) continue;
    absl::StrAppend(&html, "<h2>", HtmlText(section.title), "</h2>\n<div class=\"figures\">\n", pictures, "</div>\n");
  }
  if (!constants.empty()) {
    absl::StrAppend(&html, "<h2>Figures that kept one value</h2>\n<p>At all steps of all runs; not drawn.</p>\n",
                    "<div class=\"constants\">\n", constants, "</div>\n");
  }
  return html;
}

}  // namespace lockstep
