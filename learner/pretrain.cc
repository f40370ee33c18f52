#include "learner/pretrain.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"

namespace lockstep {
namespace {

std::vector<TrainSample> Batch(const PretrainParts& parts, DataOrder& order, uint64_t step) {
  const uint64_t size = parts.config.trainer().prompts_per_step();
  std::vector<TrainSample> samples;
  for (uint64_t position = (step - 1) * size; position < step * size; ++position) {
    const Problem& problem = (*parts.problems)[order.IndexAt(position)];
    TrainSample sample;
    sample.prompt = problem.prompt_tokens;
    sample.response = problem.response_tokens;
    samples.push_back(std::move(sample));
  }
  return samples;
}

absl::Status Train(const PretrainParts& parts, DataOrder& order, RunPosition* position) {
  const uint64_t step = position->step + 1;
  const absl::Time start = absl::Now();
  StepMessage message;
  message.kind = StepMessage::Kind::kSupervised;
  message.samples = Batch(parts, order, step);
  if (absl::Status status = parts.ranks->Send(message); !status.ok()) return status;
  auto metrics = parts.trainer->SupervisedStep(message.samples);
  if (!metrics.ok()) return metrics.status();
  position->step = step;
  if (metrics->skipped == 0) ++position->weight_version;

  v1::StepSummary summary;
  summary.set_step(step);
  summary.set_loss(metrics->objective.loss);
  summary.set_entropy(metrics->entropy_sum / std::max(1.0, metrics->objective.tokens));
  summary.set_grad_norm(metrics->grad_norm);
  summary.set_loss_scale(metrics->loss_scale);
  summary.set_skipped(metrics->skipped > 0);
  summary.set_skipped_steps_total(parts.trainer->loss_scaler().state().skipped_steps_total);
  summary.set_response_tokens(static_cast<uint64_t>(metrics->objective.tokens));
  summary.set_response_length_mean(metrics->objective.tokens / static_cast<double>(message.samples.size()));
  summary.set_samples(message.samples.size());
  summary.set_weight_version(position->weight_version);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  summary.set_train_tokens_per_second(metrics->tokens / std::max(1e-9, seconds));
  summary.set_seconds_total(seconds);
  (*summary.mutable_seconds())["forward_backward"] = metrics->forward_backward_seconds;
  (*summary.mutable_seconds())["reduce"] = metrics->reduce_seconds;
  (*summary.mutable_seconds())["optimizer"] = metrics->optimizer_seconds;

  parts.metrics->Gauge("rl_learner_step").Set(static_cast<double>(step));
  parts.metrics->Gauge("rl_learner_loss", {{"term", "total"}}).Set(summary.loss());
  parts.metrics->Gauge("rl_learner_grad_norm").Set(summary.grad_norm());
  parts.metrics->Gauge("rl_learner_loss_scale").Set(parts.trainer->loss_scaler().scale());
  parts.metrics->Counter("rl_learner_tokens_total").Increment(metrics->objective.tokens);
  parts.metrics->Counter("rl_learner_steps_total", {{"outcome", summary.skipped() ? "skipped_nonfinite" : "committed"}})
      .Increment();
  parts.metrics->RecordProgress();
  const std::string json = StepSummaryJson(summary);
  if (absl::Status status = parts.metrics_file->Append(json); !status.ok()) {
    LogWarning("metrics.jsonl: ", std::string(status.message()));
  }
  if (absl::Status status = parts.tensorboard->Append(json); !status.ok()) {
    LogWarning("tensorboard: ", std::string(status.message()));
  }
  const double left = seconds * static_cast<double>(parts.config.trainer().max_steps() - step);
  parts.monitor->Publish([&](v1::RunStatus& status) {
    status.set_phase(v1::RUN_PHASE_TRAIN);
    status.set_step(step);
    status.set_weight_version(position->weight_version);
    status.set_seconds_left(left);
    *status.mutable_last_step() = summary;
  });
  return absl::OkStatus();
}

}  // namespace

absl::Status Pretrain(const PretrainParts& parts) {
  const v1::TrainerConfig& trainer = parts.config.trainer();
  if (trainer.prompts_per_step() == 0) return absl::InvalidArgumentError("trainer.prompts_per_step must be at least 1");
  DataOrder order(parts.problems->size(), parts.config.seed(), parts.config.data().shuffle());
  RunPosition position = parts.position;
  uint64_t checkpointed = UINT64_MAX;
  absl::StatusOr<std::string> path = std::string();
  const auto checkpoint = [&] {
    path = parts.checkpoints->Write(*parts.trainer, position);
    if (path.ok()) checkpointed = position.step;
    return path;
  };
  absl::Status status;
  while (status.ok() && position.step < trainer.max_steps() && !parts.terminated() &&
         !parts.monitor->stop_requested()) {
    if (parts.monitor->checkpoint_requested()) parts.monitor->CheckpointDone(checkpoint());
    if (parts.monitor->paused()) {
      parts.monitor->Publish([](v1::RunStatus& s) { s.set_phase(v1::RUN_PHASE_PAUSED); });
      while (status.ok() && parts.monitor->paused() && !parts.terminated()) {
        parts.monitor->WaitForCommand(absl::Milliseconds(200));
        if (parts.monitor->checkpoint_requested()) parts.monitor->CheckpointDone(checkpoint());
        status = parts.ranks->Heartbeat();
      }
      continue;
    }
    status = Train(parts, order, &position);
    const uint32_t every = trainer.checkpoint_every();
    if (status.ok() && every > 0 && position.step % every == 0) (void)checkpoint();  // logged and counted there
  }
  if (checkpointed != position.step && position.step > 0) {
    (void)checkpoint();
    if (!path.ok() && status.ok()) status = path.status();
  }
  if (parts.monitor->checkpoint_requested()) parts.monitor->CheckpointDone(path);
  StepMessage end;
  end.kind = StepMessage::Kind::kEnd;
  if (absl::Status told = parts.ranks->Send(end); !told.ok() && status.ok()) status = told;
  return status;
}

}  // namespace lockstep
