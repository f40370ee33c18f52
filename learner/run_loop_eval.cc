// The run loop's held-out evaluations: when they are due, and where their figures go.
#include <google/protobuf/util/json_util.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "learner/evaluation.h"
#include "learner/run_loop.h"

namespace lockstep {
namespace {

bool SameSettings(const EvaluationRecord& record, const std::string& settings, uint64_t weight_version) {
  return record.settings == settings && record.weight_version == weight_version;
}

}  // namespace

absl::Status RunLoop::EvaluateIfDue(bool at_end) {
  const uint64_t every = parts_.config.trainer().eval_every();
  if (every == 0 || parts_.eval_problems == nullptr || parts_.eval_problems->empty()) return absl::OkStatus();
  if (evaluated_step_ == position_.step || (!at_end && position_.step % every != 0)) return absl::OkStatus();
  const std::string settings = EvaluationSettingsDigest(parts_.config);
  auto known = parts_.ledger->FindEvaluation(position_.step);
  if (!known.ok()) return known.status();
  if (known->has_value() && SameSettings(**known, settings, position_.weight_version)) {
    v1::EvalSummary summary;
    if (google::protobuf::util::JsonStringToMessage((*known)->summary_json, &summary).ok()) {
      ShowEvaluation(summary, /*append=*/!parts_.metrics_file->HasEvaluation(summary.step()));
      return absl::OkStatus();
    }
  }
  EvaluationParts evaluation;
  evaluation.config = parts_.config;
  evaluation.run_id = parts_.run_id;
  evaluation.stop_token_ids = parts_.stop_token_ids;
  evaluation.tokenizer = parts_.tokenizer;
  evaluation.problems = parts_.eval_problems;
  evaluation.rollouts = parts_.rollouts;
  evaluation.step = position_.step;
  evaluation.weights = {parts_.epoch, position_.weight_version};
  // Its own, so that a training group in flight and one of the evaluation are never taken for each other.
  auto rewards = GroupRewards::Create(parts_.config.data(), parts_.run_id, parts_.tokenizer, parts_.metrics);
  if (!rewards.ok()) return rewards.status();
  evaluation.rewards = rewards->get();
  // With max_staleness > 0 groups of the next steps are in flight.
  evaluation.take_other = [this](SampleGroup group) { return RewardGroup(std::move(group)); };
  evaluation.between = [this](size_t done) -> absl::Status {
    if (parts_.terminated() || parts_.monitor->stop_requested()) return absl::CancelledError("the run is to end");
    ReportEvaluationProgress(done);
    ServeCommands();
    return parts_.ranks->Heartbeat();
  };
  const auto result = Evaluate(evaluation);
  // Given up, to be made by a resumed run; the caller sees the same request to end.
  if (absl::IsCancelled(result.status())) return absl::OkStatus();
  if (!result.ok()) return result.status();
  return RecordEvaluation(result->summary, settings);
}

void RunLoop::ReportEvaluationProgress(size_t done) {
  const auto servers = parts_.rollouts->ServerStatuses();
  const uint32_t n = parts_.config.eval().n();
  parts_.monitor->Progress([&](v1::RunStatus& status) {
    status.set_phase(v1::RUN_PHASE_EVAL);
    status.set_samples_done(static_cast<uint32_t>(done) * n);
    status.set_samples_total(static_cast<uint32_t>(parts_.eval_problems->size()) * n);
    status.mutable_servers()->Assign(servers.begin(), servers.end());
  });
}

absl::Status RunLoop::RecordEvaluation(const v1::EvalSummary& summary, const std::string& settings) {
  EvaluationRecord record;
  record.step = summary.step();
  record.weight_version = summary.weight_version();
  record.settings = settings;
  const auto converted = google::protobuf::util::MessageToJsonString(summary, &record.summary_json);
  if (!converted.ok()) return absl::InternalError("an evaluation's summary has no JSON form");
  if (absl::Status status = parts_.ledger->CommitEvaluation(record); !status.ok()) return status;
  MetricsRegistry& registry = *parts_.metrics;
  registry.Counter("rl_learner_eval_samples_total").Increment(static_cast<double>(summary.problems() * summary.n()));
  registry.Histogram("rl_learner_eval_duration_seconds").Observe(summary.seconds());
  registry.RecordProgress();
  ShowEvaluation(summary, /*append=*/true);
  return absl::OkStatus();
}

void RunLoop::ShowEvaluation(const v1::EvalSummary& summary, bool append) {
  evaluated_step_ = summary.step();
  if (append) AppendLine(EvalSummaryJson(summary));
  LogInfo("evaluation at step ", summary.step(), ": ", EvalSummaryText(summary));
  MetricsRegistry& registry = *parts_.metrics;
  const auto set = [&registry](const char* name, double value) { registry.Gauge(name).Set(value); };
  set("rl_learner_eval_step", static_cast<double>(summary.step()));
  const std::pair<const char*, uint32_t> reported[] = {{"one", 1}, {"n", summary.n()}};
  for (const auto& [label, k] : reported) {
    registry.Gauge("rl_learner_eval_pass_ratio", {{"k", label}}).Set(summary.pass_at_k().at(k));
  }
  set("rl_learner_eval_majority_ratio", summary.majority_at_k().at(summary.n()));
  set("rl_learner_eval_response_length_tokens", summary.response_length_mean());
  set("rl_learner_eval_cut_by_length_ratio", summary.cut_by_length());
  parts_.monitor->Publish([&](v1::RunStatus& status) {
    *status.mutable_last_eval() = summary;
    status.set_samples_done(0);
  });
}

}  // namespace lockstep
