#include "learner/run_loop.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "learner/sampling.h"
#include "learner/step_figures.h"
#include "learner/update_source.h"

namespace lockstep {
namespace {

// Tells the order of dynamic sampling's problems from that of the run's.
constexpr uint64_t kExtraOrderSeed = 0x9E3779B97F4A7C15;

constexpr absl::Duration kPoll = absl::Milliseconds(200);

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(absl::Now() - start); }

}  // namespace

RunLoop::RunLoop(RunLoopParts parts, AdvantageKind advantage, std::unique_ptr<GroupRewards> rewards)
    : parts_(std::move(parts)),
      advantage_(advantage),
      rewards_(std::move(rewards)),
      order_(parts_.problems->size(), parts_.config.seed(), parts_.config.data().shuffle()),
      extra_order_(parts_.problems->size(), parts_.config.seed() ^ kExtraOrderSeed, /*shuffle=*/true),
      extra_per_step_(ExtraGroupsPerStep(parts_.config)),
      position_(parts_.position),
      requested_steps_(position_.step) {}

absl::StatusOr<RunLoop> RunLoop::Create(RunLoopParts parts) {
  ResolveAlgorithm(parts.config.mutable_algorithm());
  const v1::RunConfig& config = parts.config;
  if (config.trainer().prompts_per_step() == 0 || config.rollout().n() == 0) {
    return absl::InvalidArgumentError("trainer.prompts_per_step and rollout.n must be at least 1");
  }
  if (!(config.rollout().temperature() > 0)) {
    return absl::InvalidArgumentError(
        "rollout.temperature must be above 0: a greedy sample has no log-prob to train on");
  }
  if (config.rollout().top_p() < 1 || config.rollout().top_k() > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rollout.top_p ", config.rollout().top_p(), " and rollout.top_k ", config.rollout().top_k(),
                     " change the sampling distribution, and the learner does not apply them; use 1 and 0"));
  }
  auto advantage = ParseAdvantageKind(config.algorithm().advantage());
  if (!advantage.ok()) return advantage.status();
  auto rewards = GroupRewards::Create(config.data(), parts.run_id, parts.tokenizer, parts.metrics);
  if (!rewards.ok()) return rewards.status();
  return RunLoop(std::move(parts), *advantage, *std::move(rewards));
}

absl::Status RunLoop::Run() {
  absl::Status status = RunSteps();
  if (checkpointed_step_ != position_.step && position_.step > 0) {
    const auto path = WriteCheckpoint();
    if (!path.ok() && status.ok()) status = path.status();
  }
  if (parts_.monitor->checkpoint_requested()) {
    parts_.monitor->CheckpointDone(absl::UnavailableError("the run has ended; its last checkpoint is written"));
  }
  StepMessage end;
  end.kind = StepMessage::Kind::kEnd;
  if (absl::Status told = parts_.ranks->Send(end); !told.ok() && status.ok()) status = told;
  return status;
}

absl::Status RunLoop::RunSteps() {
  parts_.monitor->Publish([this](v1::RunStatus& status) {
    status.set_epoch(parts_.epoch);
    status.set_step(position_.step);
    status.set_phase(v1::RUN_PHASE_WEIGHT_SYNC);
  });
  v1::StepSummary at_start;
  if (absl::Status status = PublishWeights(&at_start); !status.ok()) return status;
  if (absl::Status status = EvaluateIfDue(false); !status.ok()) return status;
  while (position_.step < parts_.config.trainer().max_steps() && !reward_reached_) {
    if (absl::Status status = WaitWhilePaused(); !status.ok()) return status;
    if (parts_.terminated() || parts_.monitor->stop_requested()) return absl::OkStatus();
    const uint64_t before = position_.step;
    if (absl::Status status = RunStep(); !status.ok()) return status;
    if (position_.step == before) return absl::OkStatus();  // SIGTERM while groups were collected
    if (absl::Status status = EvaluateIfDue(false); !status.ok()) return status;
    ServeCommands();
  }
  return EvaluateIfDue(true);
}

absl::Status RunLoop::RunStep() {
  const uint64_t step = position_.step + 1;
  const absl::Time start = absl::Now();
  v1::StepSummary summary;
  summary.set_step(step);
  score_seconds_ = 0;
  bool collected = false;
  if (absl::Status status = CollectGroups(step, &collected); !status.ok()) return status;
  if (!collected) return absl::OkStatus();
  // Scoring and the ledger overlap with the servers' decoding: "rollout" is what is left of the time, waiting.
  (*summary.mutable_seconds())["score"] = score_seconds_;
  (*summary.mutable_seconds())["rollout"] = SecondsSince(start) - score_seconds_;

  std::vector<TrainSample> samples = BuildBatch(step, &summary);
  if (absl::Status status = Train(std::move(samples), &summary); !status.ok()) return status;
  if (absl::Status status = PublishWeights(&summary); !status.ok()) return status;
  (*summary.mutable_seconds())["checkpoint"] = parts_.checkpoints->TakeSeconds();  // since the last step's end
  summary.set_seconds_total(SecondsSince(start));
  return FinishStep(step, &summary);
}

absl::Status RunLoop::RequestGroups(uint64_t last_step) {
  last_step = std::min<uint64_t>(last_step, parts_.config.trainer().max_steps());
  const uint64_t per_step = parts_.config.trainer().prompts_per_step();
  for (; requested_steps_ < last_step; ++requested_steps_) {
    const uint64_t step = requested_steps_ + 1;
    for (uint64_t group_id = FirstGroup(step); group_id < FirstGroup(step) + per_step; ++group_id) {
      if (absl::Status status = RequestGroup(group_id); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::Status RunLoop::RequestGroup(uint64_t group_id) {
  auto known = parts_.ledger->FindGroup(group_id);
  if (!known.ok()) return known.status();
  if (known->has_value()) {  // accepted before this start: used as it is
    if (absl::Status status = CheckKnownRouting(**known); !status.ok()) return status;
    ready_[group_id] = *std::move(*known);
    return absl::OkStatus();
  }
  const Problem& problem = (*parts_.problems)[ProblemOf(group_id)];
  v1::Group group =
      MakeGroupRequest(parts_.config, parts_.run_id, group_id, problem.prompt_tokens, parts_.stop_token_ids);
  group.set_routing(wants_routing());
  group.set_min_weight_epoch(parts_.epoch);
  group.set_min_weight_version(position_.weight_version);
  parts_.rollouts->Submit(std::move(group));
  return absl::OkStatus();
}

absl::Status RunLoop::CheckKnownRouting(const SampleGroup& group) const {
  if (!wants_routing()) return absl::OkStatus();
  const size_t row_bytes = parts_.routing.row_bytes();
  const size_t prompt = (*parts_.problems)[group.problem_index].prompt_tokens.size() - 1;
  bool missing = false;
  for (const Sample& sample : group.samples) {
    missing |= sample.prompt_routing == nullptr && !sample.tokens.empty();
    if (sample.prompt_routing == nullptr) continue;
    absl::Status status = CheckRouting(parts_.routing, *sample.prompt_routing);
    if (status.ok()) status = CheckRouting(parts_.routing, sample.routing);
    if (status.ok() && (sample.prompt_routing->size() != prompt * row_bytes ||
                        sample.routing.size() != sample.tokens.size() * row_bytes)) {
      status = absl::InvalidArgumentError("it does not fit the prompt and the response");
    }
    if (status.ok()) continue;
    return absl::DataLossError(absl::StrCat("ledger: routing of group ", group.group_id, " sample ",
                                            sample.sample_index, ": ", std::string(status.message())));
  }
  if (missing) {
    LogWarning("group ", group.group_id, " was sampled without routing (learner.router_replay was off); the learner's ",
               "routers choose for it");
  }
  return absl::OkStatus();
}

uint64_t RunLoop::StepOf(uint64_t group_id) const {
  return group_id < kFirstExtraGroup ? group_id / parts_.config.trainer().prompts_per_step() + 1
                                     : (group_id - kFirstExtraGroup) / extra_per_step_ + 1;
}

uint64_t RunLoop::ProblemOf(uint64_t group_id) {
  return group_id < kFirstExtraGroup ? order_.IndexAt(group_id) : extra_order_.IndexAt(group_id - kFirstExtraGroup);
}

std::vector<const SampleGroup*> RunLoop::GroupsOf(uint64_t step) const {
  std::vector<const SampleGroup*> groups;
  for (const auto& [begin, end] :
       {std::pair(FirstGroup(step), FirstGroup(step + 1)), std::pair(FirstExtra(step), FirstExtra(step + 1))}) {
    const auto last = ready_.lower_bound(end);
    for (auto it = ready_.lower_bound(begin); it != last; ++it) groups.push_back(&it->second);
  }
  return groups;
}

absl::Status RunLoop::RewardGroup(SampleGroup group) {
  const absl::Time start = absl::Now();
  group.step = StepOf(group.group_id);
  group.problem_index = ProblemOf(group.group_id);
  const Problem& problem = (*parts_.problems)[group.problem_index];
  rewards_->Add(std::move(group), problem);
  score_seconds_ += SecondsSince(start);
  return AcceptRewarded();
}

absl::Status RunLoop::AcceptRewarded() {
  const absl::Time start = absl::Now();
  while (std::optional<SampleGroup> group = rewards_->Next(absl::ZeroDuration())) {
    if (parts_.config.algorithm().dynamic_sampling()) MarkWithoutSignal(&*group);
    auto fresh = parts_.ledger->CommitGroup(*group);
    if (!fresh.ok()) return fresh.status();
    if (*fresh) {
      for (const Sample& sample : group->samples) {
        if (sample.dropped_reason != "reward") continue;
        parts_.metrics->Counter("rl_learner_trajectories_total", {{"disposition", "reward"}}).Increment();
      }
      ready_[group->group_id] = *std::move(group);
    } else {
      parts_.metrics->Counter("rl_learner_trajectories_total", {{"disposition", "duplicate"}})
          .Increment(static_cast<double>(group->samples.size()));
    }
  }
  score_seconds_ += SecondsSince(start);
  ReportRewardTrouble();
  return absl::OkStatus();
}

void RunLoop::ReportRewardTrouble() {
  const std::string trouble = rewards_->trouble();
  if (trouble.empty() && !reward_trouble_) return;
  const bool changed = trouble.empty() == reward_trouble_;
  reward_trouble_ = !trouble.empty();
  const auto set = [&](v1::RunStatus& status) {
    status.set_message(trouble.empty() ? "the reward service answers again" : trouble);
  };
  if (changed) {
    parts_.monitor->Publish(set);
  } else {
    parts_.monitor->Progress(set);
  }
}

absl::Status RunLoop::CollectGroups(uint64_t step, bool* collected) {
  parts_.monitor->Publish([](v1::RunStatus& status) { status.set_phase(v1::RUN_PHASE_ROLLOUT); });
  if (absl::Status status = RequestGroups(step); !status.ok()) return status;
  absl::Status status = WaitForGroups(FirstGroup(step), FirstGroup(step + 1), collected);
  // Dynamic sampling, in rounds; without it there are no ids between `next` and `end`.
  for (uint64_t next = FirstExtra(step), end = FirstExtra(step + 1); status.ok() && *collected && next < end;) {
    const auto groups = GroupsOf(step);
    const uint64_t usable = std::count_if(groups.begin(), groups.end(), [](const auto* g) { return IsUsable(*g); });
    const uint64_t wanted = parts_.config.trainer().prompts_per_step();
    if (usable >= wanted) break;
    const uint64_t last = std::min(end, next + wanted - usable);
    for (uint64_t group_id = next; group_id < last && status.ok(); ++group_id) status = RequestGroup(group_id);
    if (status.ok()) status = WaitForGroups(next, last, collected);
    next = last;
  }
  if (!status.ok() || !*collected) return status;
  return RequestGroups(step + parts_.config.algorithm().max_staleness());
}

// `collected` is false where SIGTERM came first.
absl::Status RunLoop::WaitForGroups(uint64_t begin, uint64_t end, bool* collected) {
  *collected = false;
  const auto missing = [&] {
    return end - begin - static_cast<uint64_t>(std::distance(ready_.lower_bound(begin), ready_.lower_bound(end)));
  };
  while (missing() > 0) {
    if (parts_.terminated()) return absl::OkStatus();
    auto group = parts_.rollouts->Next(rewards_->pending() > 0 ? kRewardPoll : kPoll);
    if (group.ok()) {
      if (absl::Status status = RewardGroup(*std::move(group)); !status.ok()) return status;
    } else if (!absl::IsDeadlineExceeded(group.status())) {
      return group.status();
    }
    if (absl::Status status = AcceptRewarded(); !status.ok()) return status;
    ReportProgress();
    ServeCommands();
    if (absl::Status status = parts_.ranks->Heartbeat(); !status.ok()) return status;
  }
  *collected = true;
  return absl::OkStatus();
}

std::vector<TrainSample> RunLoop::BuildBatch(uint64_t step, v1::StepSummary* summary) {
  std::vector<TrainSample> batch;
  double rewards = 0, tokens = 0, staleness = 0, advantage_squares = 0;
  uint64_t dropped = 0, scored = 0, extra = 0, without_signal = 0;
  const MetricHistogram reward_histogram = parts_.metrics->Histogram("rl_learner_reward");
  const MetricHistogram staleness_histogram = parts_.metrics->Histogram("rl_learner_staleness_versions");
  for (const SampleGroup* at : GroupsOf(step)) {
    const SampleGroup& group = *at;
    const bool is_extra = group.group_id >= kFirstExtraGroup;
    extra += is_extra ? 1 : 0;
    without_signal += HasNoSignal(group) ? 1 : 0;
    std::vector<double> group_rewards;
    std::vector<const Sample*> kept;
    for (const Sample& sample : group.samples) {
      // The reward of a step is that of its first groups, with or without signal: a fair sample of the problems.
      if (!is_extra && (sample.dropped_reason.empty() || sample.dropped_reason == kNoSignal)) {
        rewards += sample.reward;
        ++scored;
      }
      if (!sample.dropped_reason.empty()) {
        ++dropped;
        continue;
      }
      kept.push_back(&sample);
      group_rewards.push_back(sample.reward);
    }
    const std::vector<float> advantages = GroupAdvantages(advantage_, group_rewards);
    for (size_t i = 0; i < kept.size(); ++i) {
      const Sample& sample = *kept[i];
      TrainSample train;
      train.prompt = (*parts_.problems)[group.problem_index].prompt_tokens;
      train.response = sample.tokens;
      train.log_mu = sample.log_probs;
      if (wants_routing() && sample.prompt_routing != nullptr) train.routing = *sample.prompt_routing + sample.routing;
      train.advantage = advantages[i];
      batch.push_back(std::move(train));
      tokens += static_cast<double>(sample.tokens.size());
      const double age =
          static_cast<double>(position_.weight_version) - static_cast<double>(sample.weight_versions.front());
      staleness += age;
      advantage_squares += double{advantages[i]} * advantages[i];
      reward_histogram.Observe(sample.reward);
      staleness_histogram.Observe(age);
    }
  }
  const double samples = std::max<double>(1, static_cast<double>(batch.size()));
  summary->set_samples(batch.size());
  summary->set_dropped_samples(dropped);
  summary->set_extra_groups(extra);
  summary->set_no_signal_groups(without_signal);
  summary->set_reward_mean(rewards / std::max<double>(1, static_cast<double>(scored)));
  summary->set_response_tokens(static_cast<uint64_t>(tokens));
  summary->set_response_length_mean(tokens / samples);
  summary->set_staleness_mean(staleness / samples);
  const double collect_seconds = summary->seconds().at("rollout") + summary->seconds().at("score");
  summary->set_rollout_tokens_per_second(tokens / std::max(1e-9, collect_seconds));
  parts_.metrics->Gauge("rl_learner_advantage_std").Set(std::sqrt(advantage_squares / samples));
  return batch;
}

absl::Status RunLoop::Train(std::vector<TrainSample> samples, v1::StepSummary* summary) {
  parts_.monitor->Publish([](v1::RunStatus& status) { status.set_phase(v1::RUN_PHASE_TRAIN); });
  if (samples.empty()) {
    summary->set_skipped(true);
    parts_.metrics->Counter("rl_learner_steps_total", {{"outcome", "skipped_empty"}}).Increment();
    return absl::OkStatus();
  }
  StepMessage message;
  message.kind = StepMessage::Kind::kTrain;
  message.updates = std::max<uint32_t>(1, parts_.config.trainer().updates_per_step());
  message.samples = std::move(samples);
  if (absl::Status status = parts_.ranks->Send(message); !status.ok()) return status;
  auto metrics = parts_.trainer->Step(std::move(message.samples), message.updates);
  if (!metrics.ok()) return metrics.status();
  FillStepFigures(*metrics, summary);
  if (!summary->skipped()) ++position_.weight_version;
  ExportMetrics(*summary, *metrics);
  return absl::OkStatus();
}

absl::Status RunLoop::PublishWeights(v1::StepSummary* summary) {
  summary->set_weight_version(position_.weight_version);
  summary->set_skipped_steps_total(parts_.trainer->loss_scaler().state().skipped_steps_total);
  parts_.metrics->Gauge("rl_weight_sync_version").Set(static_cast<double>(position_.weight_version));
  if (summary->skipped()) return absl::OkStatus();  // the weights are as they were
  parts_.monitor->Publish([](v1::RunStatus& status) { status.set_phase(v1::RUN_PHASE_WEIGHT_SYNC); });
  const absl::Time start = absl::Now();
  const std::vector<std::string> addresses = parts_.rollouts->LiveAddresses();
  UpdateSource values(parts_.trainer);
  const auto report = parts_.publisher->Publish(parts_.epoch, position_.weight_version, values.source(), addresses);
  if (!values.status().ok()) return values.status();
  std::vector<std::string> updated;
  if (report.ok()) {
    for (const ServerUpdate& server : report->servers) {
      if (server.status.ok()) updated.push_back(server.address);
    }
    summary->set_weight_sync_bytes(static_cast<double>(report->bytes));
  } else if (absl::IsInvalidArgument(report.status()) || absl::IsFailedPrecondition(report.status())) {
    return report.status();  // refused for good: a newer learner runs, or the settings cannot be
  } else {
    LogWarning("weight version ", position_.weight_version,
               " reached no server; they catch up one by one: ", std::string(report.status().message()));
    const std::string message(report.status().message());
    parts_.monitor->Publish([&](v1::RunStatus& status) { status.set_message(message); });
  }
  parts_.rollouts->SetWeights({parts_.epoch, position_.weight_version}, updated);
  (*summary->mutable_seconds())["weight_sync"] = SecondsSince(start);
  return parts_.ranks->Heartbeat();
}

absl::Status RunLoop::FinishStep(uint64_t step, v1::StepSummary* summary) {
  const std::string json = StepSummaryJson(*summary);
  StepRecord record;
  record.step = step;
  record.weight_version = position_.weight_version;
  record.skipped = summary->skipped();
  record.summary_json = json;
  for (const SampleGroup* group : GroupsOf(step)) record.group_ids.push_back(group->group_id);
  if (absl::Status status = parts_.ledger->CommitStep(record); !status.ok()) return status;
  parts_.metrics->Counter("rl_learner_trajectories_total", {{"disposition", "committed"}})
      .Increment(static_cast<double>(summary->samples()));
  ready_.erase(ready_.begin(), ready_.lower_bound(FirstGroup(step + 1)));
  ready_.erase(ready_.lower_bound(FirstExtra(step)), ready_.lower_bound(FirstExtra(step + 1)));
  position_.step = step;
  reward_reached_ = RewardReached(summary->reward_mean());
  AppendLine(json);
  for (const auto& [phase, seconds] : summary->seconds()) {
    parts_.metrics->Histogram("rl_learner_step_duration_seconds", {{"phase", phase}}).Observe(seconds);
  }
  parts_.metrics->RecordProgress();
  steps_seconds_ += summary->seconds_total();
  ++steps_here_;
  const double left = static_cast<double>(parts_.config.trainer().max_steps() - step) * steps_seconds_ / steps_here_;
  parts_.monitor->Publish([&](v1::RunStatus& status) {
    status.set_step(step);
    status.set_weight_version(position_.weight_version);
    *status.mutable_last_step() = *summary;
    status.set_seconds_left(left);
  });
  const uint64_t every = parts_.config.trainer().checkpoint_every();
  if (every > 0 && step % every == 0) (void)WriteCheckpoint();  // a failure is counted and logged; the run goes on
  return absl::OkStatus();
}

void RunLoop::AppendLine(const std::string& json) {
  if (absl::Status status = parts_.metrics_file->Append(json); !status.ok()) {
    LogWarning("metrics.jsonl: ", std::string(status.message()));
  }
  if (absl::Status status = parts_.tensorboard->Append(json); !status.ok()) {
    LogWarning("tensorboard: ", std::string(status.message()));
  }
}

bool RunLoop::RewardReached(double reward_mean) {
  const v1::TrainerConfig& trainer = parts_.config.trainer();
  if (trainer.stop_reward() <= 0) return false;
  position_.rewarded_steps = reward_mean >= trainer.stop_reward() ? position_.rewarded_steps + 1 : 0;
  return position_.rewarded_steps >= std::max<uint32_t>(1, trainer.stop_reward_patience());
}

void RunLoop::ExportMetrics(const v1::StepSummary& summary, const TrainMetrics& metrics) {
  MetricsRegistry& registry = *parts_.metrics;
  registry.Gauge("rl_learner_step").Set(static_cast<double>(summary.step()));
  registry.Counter("rl_learner_steps_total", {{"outcome", summary.skipped() ? "skipped_nonfinite" : "committed"}})
      .Increment();
  ExportStepFigures(summary, metrics, registry);
  registry.Gauge("rl_learner_loss_scale").Set(parts_.trainer->loss_scaler().scale());
  registry.Gauge("rl_orchestrator_generation_epoch").Set(static_cast<double>(parts_.epoch));
}

void RunLoop::ReportProgress() {
  const auto servers = parts_.rollouts->ServerStatuses();
  uint32_t done = parts_.rollouts->samples_done();
  for (const auto& [group_id, group] : ready_) done += static_cast<uint32_t>(group.samples.size());
  std::map<std::string, int> states = {{"ready", 0}, {"stale", 0}, {"dead", 0}};
  for (const auto& server : servers) ++states[server.state()];
  for (const auto& [state, count] : states) {
    parts_.metrics->Gauge("rl_orchestrator_workers", {{"role", "rollout"}, {"state", state}}).Set(count);
  }
  parts_.metrics->Gauge("rl_orchestrator_buffer_trajectories").Set(done);
  const uint32_t total = parts_.config.trainer().prompts_per_step() * parts_.config.rollout().n();
  parts_.monitor->Progress([&](v1::RunStatus& status) {
    status.set_samples_done(std::min(done, total));
    status.set_samples_total(total);
    status.mutable_servers()->Assign(servers.begin(), servers.end());
  });
}

void RunLoop::ServeCommands() {
  if (parts_.monitor->checkpoint_requested()) parts_.monitor->CheckpointDone(WriteCheckpoint());
}

absl::Status RunLoop::WaitWhilePaused() {
  if (!parts_.monitor->paused()) return absl::OkStatus();
  parts_.monitor->Publish([](v1::RunStatus& status) { status.set_phase(v1::RUN_PHASE_PAUSED); });
  parts_.metrics->SetState("paused");
  while (parts_.monitor->paused() && !parts_.terminated()) {
    parts_.monitor->WaitForCommand(kPoll);
    ServeCommands();
    if (absl::Status status = parts_.ranks->Heartbeat(); !status.ok()) return status;
  }
  parts_.metrics->SetState("serving");
  return absl::OkStatus();
}

absl::StatusOr<std::string> RunLoop::WriteCheckpoint() {
  const v1::RunPhase phase = parts_.monitor->status().phase();
  parts_.monitor->Publish([](v1::RunStatus& status) { status.set_phase(v1::RUN_PHASE_CHECKPOINT); });
  auto path = parts_.checkpoints->Write(*parts_.trainer, position_);
  if (path.ok()) checkpointed_step_ = position_.step;
  parts_.monitor->Publish([&](v1::RunStatus& status) {
    status.set_phase(phase);
    status.set_message(path.ok() ? absl::StrCat("checkpoint ", *path)
                                 : absl::StrCat("checkpoint failed: ", std::string(path.status().message())));
  });
  return path;
}

}  // namespace lockstep
