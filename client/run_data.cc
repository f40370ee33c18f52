#include "client/run_data.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "client/ledger_reader.h"

namespace lockstep {
namespace {

using Json = nlohmann::json;

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (!(text << file.rdbuf()) && file.peek() != EOF) {
    return absl::UnavailableError(absl::StrCat(path, " cannot be read"));
  }
  return text.str();
}

absl::Status AddLine(absl::StatusOr<LineFigures> line, const std::string& where, RunData* run) {
  if (!line.ok()) {
    return absl::DataLossError(
        absl::StrCat(where, " ", std::string(line.status().message()), "; the file was damaged"));
  }
  (line->evaluation ? run->evaluations : run->steps)[line->step] = std::move(line->figures);
  return absl::OkStatus();
}

absl::Status FromLedger(const std::string& path, RunData* run) {
  const auto ledger = ReadLedger(path);
  if (!ledger.ok()) return ledger.status();
  for (const auto& [epoch, started_at] : ledger->epochs) run->starts.emplace_back().started_at = started_at;
  uint64_t epoch = 0;
  double time = 0;
  for (const LedgerStep& step : ledger->steps) {
    const std::string where = absl::StrCat(path, ": step ", step.step);
    if (absl::Status status = AddLine(ParseFigures(step.summary), where, run); !status.ok()) return status;
    absl::Time started;
    if (step.epoch != epoch) {
      epoch = step.epoch;
      const auto found = ledger->epochs.find(epoch);
      if (found != ledger->epochs.end() && absl::ParseTime(absl::RFC3339_full, found->second, &started, nullptr)) {
        time = std::max(time, absl::ToDoubleSeconds(started - absl::UnixEpoch()));
      }
    }
    const Figures& figures = run->steps[step.step];
    if (const auto seconds = figures.find("seconds_total"); seconds != figures.end() && seconds->second > 0) {
      time += seconds->second;
    }
    run->step_times[step.step] = time;
  }
  for (const std::string& summary : ledger->evaluations) {
    const std::string where = absl::StrCat(path, ": an evaluation");
    if (absl::Status status = AddLine(ParseLedgerEvaluation(summary), where, run); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// A step's last line counts: a resumed run does steps again.
absl::Status FromMetricsFile(const std::string& path, RunData* run) {
  const auto text = ReadText(path);
  if (!text.ok()) return text.status();
  std::istringstream lines(*text);
  std::string line;
  bool sampled = false;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (line.empty()) continue;
    if (lines.eof() && !text->empty() && text->back() != '\n') break;  // the line that is being written
    const std::string where = absl::StrCat(path, ":", number, ":");
    if (absl::Status status = AddLine(ParseFigures(line), where, run); !status.ok()) return status;
  }
  for (const auto& [step, figures] : run->steps) sampled |= figures.count("seconds.rollout") != 0;
  run->supervised = !run->steps.empty() && !sampled;
  return absl::OkStatus();
}

class NoErrors : public google::protobuf::io::ErrorCollector {
  void AddError(int, int, const std::string&) override {}
};

// A config of another version of the program may have fields that are not known here, or be missing.
std::optional<v1::RunConfig> ReadConfig(const std::string& path) {
  const auto text = ReadText(path);
  if (!text.ok() || text->empty()) return std::nullopt;
  NoErrors errors;
  google::protobuf::TextFormat::Parser parser;
  parser.AllowUnknownField(true);
  parser.RecordErrorsTo(&errors);
  v1::RunConfig config;
  if (!parser.ParseFromString(*text, &config)) return std::nullopt;
  return config;
}

std::string Text(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

double PositiveNumber(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? std::max(0.0, found->get<double>()) : 0;
}

// Lines that are damaged are passed over: the file only describes.
std::vector<RunStart> ReadStarts(const std::string& path) {
  std::vector<RunStart> starts;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) continue;
    RunStart& start = starts.emplace_back();
    start.started_at = Text(object, "started_at");
    start.version = Text(object, "version");
    const auto machine = object.find("machine");
    if (machine == object.end() || !machine->is_object()) continue;
    start.processor = Text(*machine, "processor");
    start.cores = static_cast<uint64_t>(std::min(1e6, PositiveNumber(*machine, "cores")));
    start.memory_gib = PositiveNumber(*machine, "memory_bytes") / (1 << 30);
    std::vector<std::string> gpus;
    if (const auto list = machine->find("gpus"); list != machine->end() && list->is_array()) {
      for (const Json& gpu : *list) {
        if (gpu.is_string()) gpus.push_back(gpu.get<std::string>());
      }
    }
    start.gpus = absl::StrJoin(gpus, ", ");
  }
  return starts;
}

// From the first start, or back from the file's last change where none was recorded.
void EstimateTimes(const std::string& path, RunData* run) {
  const auto seconds = [](const Figures& figures) {
    const auto found = figures.find("seconds_total");
    return found != figures.end() && found->second > 0 ? found->second : 0;
  };
  absl::Time started;
  double time = 0;
  struct stat status;
  if (!run->starts.empty() && absl::ParseTime(absl::RFC3339_full, run->starts[0].started_at, &started, nullptr)) {
    time = absl::ToDoubleSeconds(started - absl::UnixEpoch());
  } else if (stat(path.c_str(), &status) == 0) {
    time = static_cast<double>(status.st_mtime);
    for (const auto& [step, figures] : run->steps) time -= seconds(figures);
  }
  for (const auto& [step, figures] : run->steps) run->step_times[step] = time += seconds(figures);
}

}  // namespace

bool IsRunFolder(const std::string& path) { return Exists(path + "/ledger.db") || Exists(path + "/metrics.jsonl"); }

absl::StatusOr<RunData> ReadRun(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, " is not a folder; give the folder of a run"));
  }
  RunData run;
  run.path = path;
  run.name = std::filesystem::weakly_canonical(path, error).filename().string();
  if (run.name.empty()) run.name = path;
  absl::Status status;
  if (Exists(path + "/ledger.db")) {
    status = FromLedger(path + "/ledger.db", &run);
  } else if (Exists(path + "/metrics.jsonl")) {
    status = FromMetricsFile(path + "/metrics.jsonl", &run);
  } else {
    status = absl::NotFoundError(
        absl::StrCat(path, " is not the folder of a run: it has neither ledger.db nor metrics.jsonl"));
  }
  if (!status.ok()) return status;
  run.config = ReadConfig(path + "/config.pbtxt");
  std::vector<RunStart> starts = ReadStarts(path + "/starts.jsonl");
  if (!starts.empty()) run.starts = std::move(starts);
  if (run.step_times.empty()) EstimateTimes(path + "/metrics.jsonl", &run);
  return run;
}

}  // namespace lockstep
