#include "client/report_page.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "client/html.h"
#include "client/run_outcome.h"
#include "client/view.h"

namespace lockstep {
namespace {

using Kind = HtmlTable::Column::Kind;
constexpr Kind kNumber = Kind::kNumber, kWhole = Kind::kWhole;

constexpr char kStyle[] = R"css(
@page { size: A4; margin: 15mm 14mm; }
html { background: #fff; color: #000; }
body { font: 10pt/1.4 "DejaVu Sans", Verdana, Arial, sans-serif; max-width: 182mm; margin: 0 auto; padding: 4mm; }
h1 { font-size: 17pt; margin: 0 0 2mm; }
h2 { font-size: 12.5pt; margin: 7mm 0 2mm; break-after: avoid; }
p { margin: 1.5mm 0; }
table { border-collapse: collapse; width: 100%; font-size: 8pt; margin: 2mm 0; }
th, td { padding: 0.8mm 1.4mm; text-align: left; vertical-align: top; border-bottom: 0.5pt solid #aaa;
  overflow-wrap: break-word; }
th { border-bottom: 1pt solid #000; vertical-align: bottom; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
thead { display: table-header-group; }
tr { break-inside: avoid; }
.figures { orphans: 1; widows: 1; }
figure { display: inline-block; width: 49%; margin: 0 0 3mm; vertical-align: top; break-inside: avoid; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: 8pt; text-align: center; }
code, .settings { font: 7.5pt/1.45 "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.constants { font-size: 8pt; }
.settings, .constants { columns: 2; column-gap: 6mm; margin: 2mm 0; }
.settings div, .constants div { break-inside: avoid; }
.keep { break-inside: avoid; }
.w { white-space: nowrap; }
.notes { font-size: 8pt; }
@media print { body { max-width: none; padding: 0; } }
)css";

std::string Number(double value, const char* format = "%.4g") {
  if (std::isnan(value)) return "not a number";
  return std::isinf(value) ? (value > 0 ? "∞" : "−∞") : absl::StrFormat("%s", [&] {
    char text[40];
    std::snprintf(text, sizeof(text), format, value);
    return std::string(text);
  }());
}

std::string Number(const std::optional<double>& value, const char* format = "%.4g") {
  return value.has_value() ? Number(*value, format) : "–";
}

std::string StepText(const std::optional<uint64_t>& step) {
  return step.has_value() ? absl::StrCat("step ", *step) : "no";
}

// "2026-01-31T12:00:00+00:00" to "2026-01-31 12:00"; all times are UTC.
std::string TimeText(const std::string& rfc3339) {
  absl::Time time;
  if (rfc3339.empty()) return "not recorded";
  if (!absl::ParseTime(absl::RFC3339_full, rfc3339, &time, nullptr)) return rfc3339;
  return absl::FormatTime("%Y-%m-%d %H:%M", time, absl::UTCTimeZone());
}

std::string Seed(const RunData& run) { return run.config.has_value() ? absl::StrCat(run.config->seed()) : "?"; }

// Folders above are told only where two runs have the same name.
std::string RunName(const Report& report, const RunData& run) {
  int same = 0;
  for (const RunGroup& group : report.groups) {
    for (const RunData* other : group.runs) same += other->name == run.name ? 1 : 0;
  }
  return same > 1 ? run.path : run.name;
}

void ForEachRun(const Report& report, const std::function<void(const RunGroup&, const RunData&)>& visit) {
  for (const RunGroup& group : report.groups) {
    for (const RunData* run : group.runs) visit(group, *run);
  }
}

std::string ClaimsPart(const Claims& claims) {
  HtmlTable table{{{"id"}, {"claim"}, {"the paper"}, {"here"}, {"verdict"}}, {}};
  bool commands = false;
  for (const Claim& claim : claims.claims) {
    table.rows.push_back({claim.id, claim.claim, claim.paper_figure, claim.ours, claim.verdict});
    commands |= !claim.command.empty();
  }
  std::string html = absl::StrCat("<h2>", HtmlText(claims.title.empty() ? "Claims and figures" : claims.title),
                                  "</h2>\n", HtmlTableText(table));
  if (!commands) return html;
  absl::StrAppend(&html, "<p>Commands that give the figures:</p>\n");
  for (const Claim& claim : claims.claims) {
    if (claim.command.empty()) continue;
    absl::StrAppend(&html, "<p>", HtmlText(claim.id), ": <code>", HtmlText(claim.command), "</code></p>\n");
  }
  return html;
}

// Of a group's runs; "several" where the group was made by hand of runs with other settings.
std::string GroupDigest(const RunGroup& group) {
  std::set<std::string> digests;
  for (const RunData* run : group.runs) digests.insert(run->config.has_value() ? ConfigDigest(*run->config) : "?");
  return digests.size() == 1 ? *digests.begin() : "several";
}

std::string GroupsPart(const Report& report) {
  HtmlTable table{{{"group"},
                   {"runs", kNumber},
                   {"seeds"},
                   {"model"},
                   {"algorithm"},
                   {"numerics"},
                   {"rollout"},
                   {"learner"},
                   {"config"}},
                  {}};
  for (const RunGroup& group : report.groups) {
    std::vector<std::string> seeds;
    for (const RunData* run : group.runs) seeds.push_back(Seed(*run));
    std::vector<std::string> row = {group.label, absl::StrCat(group.runs.size()), absl::StrJoin(seeds, ", ")};
    if (const auto& config = group.runs[0]->config; config.has_value()) {
      const bool supervised = group.runs[0]->supervised;
      row.insert(row.end(),
                 {config->model().path(), supervised ? "supervised" : config->algorithm().name(), config->numerics(),
                  supervised ? "–" : config->rollout().dtype(), config->learner().dtype(), GroupDigest(group)});
    } else {
      row.insert(row.end(), {"no config.pbtxt", "?", "?", "?", "?", "?"});
    }
    table.rows.push_back(std::move(row));
  }
  return absl::StrCat("<h2>What ran</h2>\n", HtmlTableText(table));
}

std::string RunsPart(const Report& report) {
  HtmlTable table{{{"run", kWhole},
                   {"group"},
                   {"started (UTC)", kWhole},
                   {"starts", kNumber},
                   {"time of steps", kNumber},
                   {"version"},
                   {"machine"}},
                  {}};
  ForEachRun(report, [&](const RunGroup& group, const RunData& run) {
    const RunOutcome outcome = SummarizeRun(run, report.target_reward);
    const RunStart start = run.starts.empty() ? RunStart() : run.starts.front();
    std::set<std::string> versions;
    for (const RunStart& each : run.starts) {
      if (!each.version.empty()) versions.insert(each.version);
    }
    std::string machine = start.processor;
    if (start.cores > 0) absl::StrAppend(&machine, machine.empty() ? "" : ", ", start.cores, " cores");
    if (start.memory_gib > 0) absl::StrAppendFormat(&machine, ", %.0f GiB", start.memory_gib);
    if (!start.gpus.empty()) absl::StrAppend(&machine, "; ", start.gpus);
    table.rows.push_back({RunName(report, run), group.label, TimeText(start.started_at),
                          absl::StrCat(run.starts.size()), Duration(outcome.seconds),
                          versions.empty() ? "not recorded" : absl::StrJoin(versions, ", "),
                          machine.empty() ? "not recorded" : machine});
  });
  return HtmlTableText(table);
}

std::string OutcomePart(const Report& report) {
  HtmlTable table{{{"run", kWhole},
                   {"group"},
                   {"seed", kNumber},
                   {"steps", kNumber},
                   {"first reward", kNumber},
                   {"last", kNumber},
                   {"best", kNumber},
                   {absl::StrCat("reaches ", Number(report.target_reward))},
                   {"collapsed"},
                   {"max |log μ − log π|", kNumber},
                   {"skipped", kNumber}},
                  {}};
  HtmlTable supervised{{{"run", kWhole},
                        {"group"},
                        {"seed", kNumber},
                        {"steps", kNumber},
                        {"first loss", kNumber},
                        {"last loss", kNumber},
                        {"collapsed"},
                        {"skipped", kNumber}},
                       {}};
  ForEachRun(report, [&](const RunGroup& group, const RunData& run) {
    const RunOutcome outcome = SummarizeRun(run, report.target_reward);
    std::vector<std::string> row = {RunName(report, run), group.label, Seed(run), absl::StrCat(outcome.steps)};
    const std::string collapsed = outcome.steps == 0 ? "–" : StepText(outcome.collapsed_step);
    if (run.supervised) {
      const auto loss = [&](const Figures& figures) {
        const auto found = figures.find("loss");
        return found == figures.end() ? "–" : Number(found->second);
      };
      row.insert(row.end(), {loss(run.steps.begin()->second), loss(run.steps.rbegin()->second), collapsed,
                             absl::StrCat(outcome.skipped_updates)});
      supervised.rows.push_back(std::move(row));
      return;
    }
    row.insert(row.end(), {Number(outcome.first_reward), Number(outcome.last_reward), Number(outcome.best_reward),
                           outcome.steps == 0 ? "–" : StepText(outcome.target_step), collapsed,
                           Number(outcome.max_abs_log_ratio, "%.3g"), absl::StrCat(outcome.skipped_updates)});
    table.rows.push_back(std::move(row));
  });
  std::string html = "<h2>Final figures</h2>\n";
  if (!table.rows.empty()) {
    absl::StrAppend(&html, HtmlTableText(table),
                    "<p class=\"notes\">Collapsed: the first step at which the mean reward of ", kCollapseWindow,
                    " steps is under half of the greatest such mean before it, or the reward, or loss or "
                    "gradient of a step that was not skipped, is not finite. Skipped: updates left out because their "
                    "gradient was not finite.</p>\n");
  }
  if (!supervised.rows.empty()) absl::StrAppend(&html, HtmlTableText(supervised));
  return html;
}

std::string EvaluationsPart(const Report& report) {
  HtmlTable table{{{"run", kWhole},
                   {"step", kNumber},
                   {"problems", kNumber},
                   {"samples each", kNumber},
                   {"pass@1", kNumber},
                   {"pass@n", kNumber},
                   {"maj@n", kNumber},
                   {"length", kNumber},
                   {"cut by length", kNumber}},
                  {}};
  ForEachRun(report, [&](const RunGroup&, const RunData& run) {
    if (run.evaluations.empty()) return;
    const auto add = [&](const std::pair<const uint64_t, Figures>& evaluation) {
      const auto get = [&](const std::string& name) -> std::optional<double> {
        const auto found = evaluation.second.find(name);
        return found == evaluation.second.end() ? std::nullopt : std::optional<double>(found->second);
      };
      const std::string n = Number(get("n"));
      table.rows.push_back({RunName(report, run), absl::StrCat(evaluation.first), Number(get("problems")), n,
                            Number(get("pass@1")), Number(get("pass@" + n)), Number(get("maj@" + n)),
                            Number(get("response_length_mean")), Number(get("cut_by_length"))});
    };
    add(*run.evaluations.begin());
    if (run.evaluations.size() > 1) add(*run.evaluations.rbegin());
  });
  if (table.rows.empty()) return "";
  return absl::StrCat("<h2>Held-out evaluations, first and last</h2>\n", HtmlTableText(table));
}

std::string TimePart(const Report& report) {
  const std::pair<const char*, const char*> phases[] = {
      {"rollout", "rollout"},
      {"score", "scoring"},
      {"old_log_prob", "old log-probs"},
      {"reference", "reference"},
      {"forward_backward", "forward, backward"},
      {"reduce", "reduce"},
      {"optimizer", "optimiser"},
      {"weight_sync", "weight sync"},
      {"checkpoint", "checkpoint"},
  };
  HtmlTable table{{{"group"}, {"seconds a step", kNumber}}, {}};
  for (const auto& [phase, title] : phases) table.columns.push_back({title, kNumber});
  for (const RunGroup& group : report.groups) {
    double total = 0, steps = 0;
    std::map<std::string, double> seconds;
    for (const RunData* run : group.runs) {
      const RunOutcome outcome = SummarizeRun(*run, report.target_reward);
      total += outcome.seconds;
      steps += static_cast<double>(outcome.steps);
      for (const auto& [phase, value] : outcome.phase_seconds) seconds[phase] += value;
    }
    if (!(total > 0)) continue;
    std::vector<std::string> row = {group.label, Number(total / steps, "%.3g")};
    for (const auto& [phase, title] : phases) {
      const auto found = seconds.find(phase);
      row.push_back(found == seconds.end() ? "–" : absl::StrFormat("%.1f%%", 100 * found->second / total));
    }
    table.rows.push_back(std::move(row));
  }
  if (table.rows.empty()) return "";
  return absl::StrCat(
      "<h2>Where the time went</h2>\n", HtmlTableText(table),
      "<p class=\"notes\">Shares of the steps' time. Old log-probs: what recomputing them with the learner "
      "costs. Rollout: what waiting for samples takes beside scoring.</p>\n");
}

std::string SettingsPart(const Report& report) {
  std::vector<std::map<std::string, std::string>> values;
  for (const RunGroup& group : report.groups) {
    if (group.runs[0]->config.has_value()) values.push_back(ConfigValues(*group.runs[0]->config));
  }
  if (values.empty()) return "";
  std::string common;
  HtmlTable differing{{{"setting"}}, {}};
  for (const RunGroup& group : report.groups) {
    if (group.runs[0]->config.has_value()) differing.columns.push_back({group.label});
  }
  for (const auto& [key, value] : values[0]) {
    std::vector<std::string> row = {key};
    bool same = true;
    for (const auto& each : values) {
      const auto found = each.find(key);
      row.push_back(found == each.end() ? "" : found->second);
      same &= row.back() == value;
    }
    if (same) {
      absl::StrAppend(&common, "<div>", HtmlText(absl::StrCat(key, ": ", value.empty() ? "\"\"" : value)), "</div>\n");
    } else {
      differing.rows.push_back(std::move(row));
    }
  }
  std::string html = "<h2>Settings</h2>\n";
  const auto several = [](const RunGroup& group) { return GroupDigest(group) == "several"; };
  if (std::any_of(report.groups.begin(), report.groups.end(), several)) {
    html += "<p>A group of runs with several settings has those of its first run here.</p>\n";
  }
  if (!differing.rows.empty()) absl::StrAppend(&html, HtmlTableText(differing));
  return absl::StrCat(html, "<p>", values.size() > 1 ? "Equal in all groups:" : "All, without seed and run_dir:",
                      "</p>\n<div class=\"settings\">\n", common, "</div>\n");
}

}  // namespace

absl::StatusOr<std::string> ReportPage(const Report& report) {
  const auto figures = ReportFigures(report);
  if (!figures.ok()) return figures.status();
  size_t runs = 0, steps = 0;
  bool repeated = false;
  for (const RunGroup& group : report.groups) {
    runs += group.runs.size();
    repeated |= group.runs.size() > 1;
    for (const RunData* run : group.runs) steps += run->steps.size();
  }
  std::string page = absl::StrCat(
      "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n",
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>", HtmlText(report.name),
      "</title>\n<style>", kStyle, "</style>\n</head>\n<body>\n<h1>", HtmlText(report.name), "</h1>\n");
  absl::StrAppend(&page, "<p>", runs, runs == 1 ? " run" : " runs", " in ", report.groups.size(),
                  report.groups.size() == 1 ? " group" : " groups", ", ", steps, steps == 1 ? " step" : " steps",
                  " in all; read at ", HtmlText(report.made_at), ".",
                  repeated
                      ? " Curves are means over a group's runs (equal settings, other seeds); bands reach from the "
                        "least to the greatest."
                      : "",
                  "</p>\n");
  if (steps == 0) absl::StrAppend(&page, "<p>No step was finished yet: there is nothing to draw.</p>\n");
  if (report.claims.has_value()) page += ClaimsPart(*report.claims);
  absl::StrAppend(&page, GroupsPart(report), RunsPart(report), OutcomePart(report), EvaluationsPart(report));
  absl::StrAppend(&page, *figures, TimePart(report), SettingsPart(report), "</body>\n</html>\n");
  return page;
}

}  // namespace lockstep
