// report: runs as one HTML page, or as TensorBoard's event files.
#include <algorithm>
#include <deque>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/commands.h"
#include "client/report_page.h"

namespace lockstep {
namespace {

constexpr char kUsage[] =
    "usage: lockstep report RUN|FOLDER_OF_RUNS ... [--out=report.html] [--name=TITLE] [--group=LABEL:RUN,RUN ...] "
    "[--claims=FILE.json] [--target=0.95] [--tensorboard=DIR]";

// A run folder, or the run folders that lie right in a folder, by name.
absl::StatusOr<std::vector<std::string>> RunFolders(const std::string& word) {
  std::vector<std::string> found;
  std::error_code error;
  if (std::filesystem::is_directory(word, error) && !IsRunFolder(word)) {
    for (std::filesystem::directory_iterator it(word, error), end; !error && it != end; it.increment(error)) {
      if (IsRunFolder(it->path().string())) found.push_back(it->path().string());
    }
    std::sort(found.begin(), found.end());
    if (found.empty()) {
      return absl::NotFoundError(absl::StrCat(
          word, " is not the folder of a run (neither ledger.db nor metrics.jsonl), nor does it hold such folders"));
    }
    return found;
  }
  return std::vector<std::string>{word};
}

class Runs {
 public:
  // The runs of a word, read once however often they are named.
  absl::StatusOr<std::vector<const RunData*>> Add(const std::string& word) {
    const auto folders = RunFolders(word);
    if (!folders.ok()) return folders.status();
    std::vector<const RunData*> result;
    for (const std::string& folder : *folders) {
      std::error_code error;
      const std::string path = std::filesystem::weakly_canonical(folder, error).string();
      const auto same = [&](const auto& entry) { return entry.first == path; };
      auto found = std::find_if(runs_.begin(), runs_.end(), same);
      if (found == runs_.end()) {
        auto run = ReadRun(folder);
        if (!run.ok()) return run.status();
        found = runs_.insert(runs_.end(), {path, *std::move(run)});
      }
      result.push_back(&found->second);
    }
    return result;
  }
  const std::deque<std::pair<std::string, RunData>>& all() const { return runs_; }

 private:
  std::deque<std::pair<std::string, RunData>> runs_;  // whose elements stay where they are
};

// --group=LABEL:RUN,RUN
absl::StatusOr<RunGroup> ParseGroup(const std::string& value, Runs* runs) {
  const size_t colon = value.find(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == value.size()) {
    return absl::InvalidArgumentError(absl::StrCat("--group=", value, " is not LABEL:RUN,RUN"));
  }
  RunGroup group;
  group.label = value.substr(0, colon);
  for (const auto& word : absl::StrSplit(value.substr(colon + 1), ',', absl::SkipEmpty())) {
    const auto added = runs->Add(std::string(word));
    if (!added.ok()) return added.status();
    for (const RunData* run : *added) {
      if (run->supervised != added->front()->supervised ||
          (!group.runs.empty() && run->supervised != group.runs[0]->supervised)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "--group=", value, " puts supervised runs and others together; they have no figures in common"));
      }
      group.runs.push_back(run);
    }
  }
  if (group.runs.empty()) return absl::InvalidArgumentError(absl::StrCat("--group=", value, " names no run"));
  return group;
}

absl::StatusOr<std::vector<RunGroup>> Groups(const Arguments& arguments, Runs* runs) {
  std::vector<RunGroup> groups;
  std::set<const RunData*> grouped;
  for (const auto& [flag, value] : arguments.flags) {
    if (flag != "group") continue;
    auto group = ParseGroup(value, runs);
    if (!group.ok()) return group.status();
    for (const RunData* run : group->runs) {
      if (!grouped.insert(run).second) {
        return absl::InvalidArgumentError(
            absl::StrCat("--group=", value, ": run ", run->path, " is in a group already"));
      }
    }
    groups.push_back(*std::move(group));
  }
  std::vector<const RunData*> others;
  for (const std::string& word : arguments.words) {
    const auto added = runs->Add(word);
    if (!added.ok()) return added.status();
    for (const RunData* run : *added) {
      if (grouped.insert(run).second) others.push_back(run);
    }
  }
  for (RunGroup& group : GroupRuns(others)) groups.push_back(std::move(group));
  return groups;
}

absl::Status ExportEvents(const RunData& run, const std::string& folder) {
  // From step 0: what an export of before left in the folder is dropped by readers.
  const double start = run.step_times.empty() ? 0 : run.step_times.begin()->second;
  auto file = EventFile::Create(folder, start, 0);
  if (!file.ok()) return file.status();
  for (const auto& [step, figures] : run.steps) {
    absl::Status status = file->Add(run.step_times.at(step), step, StepScalars(figures, run.supervised));
    if (!status.ok()) return status;
  }
  for (const auto& [step, figures] : run.evaluations) {
    const auto time = run.step_times.find(step);
    absl::Status status =
        file->Add(time == run.step_times.end() ? start : time->second, step, EvaluationScalars(figures));
    if (!status.ok()) return status;
  }
  std::printf("wrote %s\n", file->path().c_str());
  return absl::OkStatus();
}

absl::Status ExportAll(const Runs& runs, const std::string& dir) {
  std::set<std::string> taken;
  for (const auto& [path, run] : runs.all()) {
    std::string name = run.name;
    for (int n = 2; !taken.insert(name).second; ++n) name = absl::StrCat(run.name, "-", n);
    if (absl::Status status = ExportEvents(run, absl::StrCat(dir, "/", name)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status WriteWhole(const std::string& path, const std::string& text) {
  const std::string partial = path + ".partial";
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  std::error_code error;
  if (file.good()) std::filesystem::rename(partial, path, error);
  if (file.good() && !error) return absl::OkStatus();
  std::filesystem::remove(partial, error);
  return absl::UnavailableError(absl::StrCat("cannot write ", path));
}

}  // namespace

int ReportCommand(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Arguments> split =
      SplitArguments(arguments, {"out=", "name=", "group=", "claims=", "target=", "tensorboard="});
  if (!split.ok()) return Fail(split.status(), 2);
  if (split->words.empty() && !split->Has("group")) return Usage(kUsage);
  Report report;
  if (split->Has("target") && !absl::SimpleAtod(split->Get("target"), &report.target_reward)) {
    return Usage("--target=" + split->Get("target") + " is not a number");
  }
  if (split->Has("claims")) {
    auto claims = ReadClaims(split->Get("claims"));
    if (!claims.ok()) return Fail(claims.status());
    report.claims = *std::move(claims);
  }
  Runs runs;
  auto groups = Groups(*split, &runs);
  if (!groups.ok()) return Fail(groups.status());
  report.groups = *std::move(groups);
  if (const std::string dir = split->Get("tensorboard"); !dir.empty()) {
    if (absl::Status status = ExportAll(runs, dir); !status.ok()) return Fail(status);
    if (!split->Has("out")) return 0;
  }
  report.name = split->Get("name", "Report of " + (report.groups.size() == 1 && report.groups[0].runs.size() == 1
                                                       ? report.groups[0].runs[0]->name
                                                       : absl::StrCat(runs.all().size(), " runs")));
  report.made_at = absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::Now(), absl::UTCTimeZone());
  const auto page = ReportPage(report);
  if (!page.ok()) return Fail(page.status());
  const std::string out = split->Get("out", "report.html");
  if (absl::Status status = WriteWhole(out, *page); !status.ok()) return Fail(status);
  std::printf("wrote %s\n", out.c_str());
  return 0;
}

}  // namespace lockstep
