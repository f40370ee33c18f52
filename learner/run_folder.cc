#include "learner/run_folder.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/process.h"
#include "engine/checkpoint/adapter.h"
#include "engine/checkpoint/state.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

}  // namespace

std::string StepSummaryJson(const v1::StepSummary& summary) {
  using google::protobuf::FieldDescriptor;
  Json object = Json::object();
  const auto* descriptor = summary.GetDescriptor();
  const auto* reflection = summary.GetReflection();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (field->is_map()) continue;
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_UINT64:
        object[field->name()] = reflection->GetUInt64(summary, field);
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        object[field->name()] = Number(reflection->GetDouble(summary, field));
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        object[field->name()] = reflection->GetBool(summary, field);
        break;
      default:
        break;
    }
  }
  Json seconds = Json::object();
  std::map<std::string, double> sorted(summary.seconds().begin(), summary.seconds().end());
  for (const auto& [phase, value] : sorted) seconds[phase] = Number(value);
  object["seconds"] = seconds;
  return object.dump();
}

absl::StatusOr<MetricsFile> MetricsFile::Open(const std::string& path, uint64_t last_step) {
  MetricsFile file;
  file.path_ = path;
  std::string kept;
  if (std::filesystem::exists(path)) {
    auto text = ReadFile(path);
    if (!text.ok()) return text.status();
    for (size_t begin = 0; begin < text->size();) {
      size_t end = text->find('\n', begin);
      if (end == std::string::npos) break;  // a line that was cut by a kill
      const std::string line = text->substr(begin, end - begin);
      const Json object = Json::parse(line, nullptr, false);
      const auto step = object.is_object() ? object.find("step") : object.end();
      if (object.is_object() && step != object.end() && step->is_number_unsigned() &&
          step->get<uint64_t>() <= last_step) {
        absl::StrAppend(&kept, line, "\n");
        if (object.contains("eval")) file.evaluations_.insert(step->get<uint64_t>());
      }
      begin = end + 1;
    }
  }
  if (absl::Status status = WriteFileAtomically(path, kept); !status.ok()) return status;
  return file;
}

absl::Status MetricsFile::Append(const std::string& json) const {
  std::FILE* file = std::fopen(path_.c_str(), "ae");
  if (file == nullptr) return ErrnoStatus(errno, "appending to", path_);
  const std::string line = absl::StrCat(json, "\n");
  const bool written = std::fwrite(line.data(), 1, line.size(), file) == line.size();
  const bool closed = std::fclose(file) == 0;
  return written && closed ? absl::OkStatus() : ErrnoStatus(errno, "appending to", path_);
}

Checkpoints::Checkpoints(const std::string& dir, const ModelConfig& model, DType dtype,
                         const std::string& tokenizer_dir, int keep, MetricsRegistry* metrics)
    : dir_(dir), model_(model), dtype_(dtype), tokenizer_dir_(tokenizer_dir), keep_(keep), metrics_(metrics) {}

absl::StatusOr<std::string> Checkpoints::Write(Trainer& trainer, const RunPosition& position) {
  const absl::Time start = absl::Now();
  if (absl::Status status = trainer.Fetch(TrainArrays::kState); !status.ok()) return status;
  CheckpointContents contents;
  contents.config = &model_;
  contents.arena = trainer.params();
  contents.dtype = dtype_;
  contents.tokenizer_dir = tokenizer_dir_;
  contents.arrays = trainer.StateArrays();
  if (trainer.lora() != nullptr) {
    contents.more_bytes = static_cast<uint64_t>(trainer.arena_size()) * sizeof(float);
    contents.write_more = [&](const std::string& dir) -> absl::Status {
      const std::string folder = dir + "/adapter";
      std::error_code error;
      std::filesystem::create_directory(folder, error);
      if (error) return absl::UnavailableError(absl::StrCat("cannot create folder ", folder, ": ", error.message()));
      return WriteAdapterFiles(folder, tokenizer_dir_, *trainer.lora(), trainer.arena());
    };
  }
  trainer.SaveState(&contents.values);
  contents.values["step"] = absl::StrCat(position.step);
  contents.values["weight_version"] = absl::StrCat(position.weight_version);
  contents.values["rewarded_steps"] = absl::StrCat(position.rewarded_steps);
  auto path = WriteCheckpoint(dir_, static_cast<int64_t>(position.step), contents, keep_);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  seconds_ += seconds;
  if (path.ok()) {
    metrics_->Histogram("rl_learner_checkpoint_duration_seconds").Observe(seconds);
    metrics_->Gauge("rl_learner_checkpoint_last_success_timestamp_seconds")
        .Set(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
  } else {
    const bool full = path.status().code() == absl::StatusCode::kResourceExhausted;
    metrics_->Counter("rl_learner_checkpoint_failures_total", {{"reason", full ? "disk_full" : "io"}}).Increment();
    LogWarning("checkpoint of step ", position.step,
               " was not written, training goes on: ", std::string(path.status().message()));
  }
  return path;
}

absl::StatusOr<RunPosition> Checkpoints::LoadLatest(Trainer& trainer) const {
  if (!std::filesystem::exists(dir_)) return absl::NotFoundError(absl::StrCat("no checkpoint in ", dir_));
  auto path = LatestCheckpoint(dir_);
  if (!path.ok()) return path.status();
  auto values = LoadCheckpointState(*path, trainer.StateArrays());
  if (!values.ok()) return values.status();
  RunPosition position;
  if (!absl::SimpleAtoi((*values)["step"], &position.step) ||
      !absl::SimpleAtoi((*values)["weight_version"], &position.weight_version) ||
      !absl::SimpleAtoi((*values)["rewarded_steps"], &position.rewarded_steps)) {
    return absl::DataLossError(absl::StrCat(*path, ": state has no step, weight_version or rewarded_steps"));
  }
  if (absl::Status status = trainer.RestoreState(*values); !status.ok()) return status;
  LogInfo("resuming from ", *path);
  return position;
}

double Checkpoints::TakeSeconds() {
  const double seconds = seconds_;
  seconds_ = 0;
  return seconds;
}

}  // namespace lockstep
