// Groups in and out, and weight switches: what happens to a BatchEngine between two steps.
#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "rollout_server/batch_engine.h"

namespace lockstep {
namespace {

v1::GenerateResponse Refusal(const v1::Group& group, v1::GroupRefused::Reason reason, const std::string& message) {
  v1::GenerateResponse response;
  v1::GroupRefused* refused = response.mutable_refused();
  refused->set_group_id(group.group_id());
  refused->set_attempt(group.attempt());
  refused->set_reason(reason);
  refused->set_message(message);
  return response;
}

void Refuse(const v1::Group& group, v1::GroupRefused::Reason reason, const std::string& message, ResultSink& sink) {
  sink.Push(Refusal(group, reason, message));
  v1::GenerateResponse credit;
  credit.mutable_credits()->set_groups(1);
  sink.Push(std::move(credit));
}

}  // namespace

absl::StatusOr<InFlight> ParseInFlight(const std::string& name) {
  if (name == "finish") return InFlight::kFinish;
  if (name == "continue") return InFlight::kContinue;
  if (name == "continue_stale_kv") return InFlight::kContinueStaleKv;
  if (name == "restart") return InFlight::kRestart;
  return absl::InvalidArgumentError(
      absl::StrCat("weight_sync.in_flight \"", name, "\" is not finish, continue, continue_stale_kv or restart"));
}

void BatchEngine::Submit(v1::Group group, std::shared_ptr<ResultSink> sink) {
  if (!failure_.ok()) return sink->Fail(absl::StrCat("the engine has failed: ", std::string(failure_.message())));
  const auto wanted = std::make_pair(group.min_weight_epoch(), group.min_weight_version());
  if (std::make_pair(current_->epoch, current_->version) < wanted) {
    metrics_->rejected.Increment();
    return Refuse(group, v1::GroupRefused::REASON_NOT_READY,
                  absl::StrCat("weights are at epoch ", current_->epoch, " version ", current_->version,
                               ", the group needs ", wanted.first, " version ", wanted.second),
                  *sink);
  }
  if (absl::Status status = AdmitAttempt(group, sink.get()); !status.ok()) {
    metrics_->rejected.Increment();
    return Refuse(group, v1::GroupRefused::REASON_INVALID, std::string(status.message()), *sink);
  }
  auto active = std::make_shared<ActiveGroup>();
  active->id = next_group_++;
  const auto& stops = group.sampling().stop_token_ids();
  active->stop_token_ids.assign(stops.begin(), stops.end());
  if (stops.empty()) active->stop_token_ids = config_.eos_token_ids;
  active->sink = std::move(sink);
  active->admitted_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  std::vector<uint32_t> samples(group.sample_indices().begin(), group.sample_indices().end());
  if (samples.empty()) {
    for (uint32_t i = 0; i < group.num_samples(); ++i) samples.push_back(i);
  }
  active->routing_row_bytes = group.routing() ? routing_shape_.row_bytes() : 0;
  active->unfinished = static_cast<uint32_t>(samples.size());
  active->spec = std::move(group);
  for (uint32_t sample_index : samples) {
    auto sequence = std::make_unique<Sequence>();
    sequence->group = active;
    sequence->sample_index = sample_index;
    sequences_.push_back(std::move(sequence));
  }
}

absl::Status BatchEngine::AdmitAttempt(const v1::Group& group, const ResultSink* sink) {
  const GroupKey key(group.run_id(), group.group_id());
  const AttemptKey attempt(group.min_weight_epoch(), group.attempt());
  const auto known = attempts_.find(key);
  if (known == attempts_.end()) {
    if (attempts_order_.size() >= kMaxRememberedGroups) {
      attempts_.erase(attempts_order_.front());
      attempts_order_.pop_front();
    }
    attempts_.emplace(key, attempt);
    attempts_order_.push_back(key);
    return absl::OkStatus();
  }
  if (attempt < known->second) {
    return absl::InvalidArgumentError(absl::StrCat("group ", group.group_id(), " attempt ", group.attempt(),
                                                   " is behind attempt ", known->second.second, " of epoch ",
                                                   known->second.first, ", which has been seen"));
  }
  for (const SequencePtr& sequence : sequences_) {
    const v1::Group& running = sequence->group->spec;
    if (sequence->state() == SequenceState::kFinished || running.group_id() != group.group_id() ||
        running.run_id() != group.run_id()) {
      continue;
    }
    if (attempt > known->second) {
      Finish(*sequence, v1::FINISH_REASON_CANCELLED);
    } else if (sequence->group->sink.get() == sink) {
      return absl::InvalidArgumentError(
          absl::StrCat("group ", group.group_id(), " attempt ", group.attempt(), " is already running on this stream"));
    }
  }
  known->second = attempt;
  RemoveFinished();
  return absl::OkStatus();
}

void BatchEngine::Cancel(const ResultSink* sink, uint64_t group_id, uint32_t attempt) {
  for (const SequencePtr& sequence : sequences_) {
    const ActiveGroup& group = *sequence->group;
    if (group.sink.get() != sink || group.spec.group_id() != group_id || group.spec.attempt() != attempt) continue;
    if (sequence->state() != SequenceState::kFinished) Finish(*sequence, v1::FINISH_REASON_CANCELLED);
  }
  RemoveFinished();
}

void BatchEngine::Close(const ResultSink* sink) {
  for (const SequencePtr& sequence : sequences_) {
    if (sequence->group->sink.get() != sink || sequence->state() == SequenceState::kFinished) continue;
    metrics_->cancelled.Increment();
    Drop(*sequence);
  }
  RemoveFinished();
  full_since_.erase(sink);
}

absl::Status BatchEngine::Prepare(const std::shared_ptr<const WeightSet>& weights) const {
  if (weights->config.Hash() != config_.Hash() || weights->dtype != dtype_) {
    return absl::InvalidArgumentError(absl::StrCat("weights of model ", weights->config.Hash(), " in ",
                                                   std::string(DTypeName(weights->dtype)), " do not fit model ",
                                                   config_.Hash(), " in ", std::string(DTypeName(dtype_))));
  }
  return backend_->Prepare(weights);
}

absl::Status BatchEngine::SwitchWeights(std::shared_ptr<const WeightSet> weights, InFlight in_flight) {
  if (!failure_.ok()) return failure_;
  if (absl::Status status = Prepare(weights); !status.ok()) return status;
  const auto held = std::make_pair(current_->epoch, current_->version);
  const auto offered = std::make_pair(weights->epoch, weights->version);
  if (offered <= held) {
    return absl::FailedPreconditionError(absl::StrCat("epoch ", offered.first, " version ", offered.second,
                                                      " is not after the held epoch ", held.first, " version ",
                                                      held.second));
  }
  current_ = std::move(weights);
  weight_sets_.emplace_back(current_, next_weights_id_++);
  if (in_flight != InFlight::kFinish) {
    for (const SequencePtr& sequence : sequences_) SwitchSequence(*sequence, in_flight);
  }
  ForgetUnusedWeights();
  // Under `finish`, memory is bounded: samples of the oldest sets go on with the current one.
  while (weight_sets_.size() > kMaxWeightSets) {
    for (const SequencePtr& sequence : sequences_) {
      if (sequence->weights == weight_sets_.front().first) SwitchSequence(*sequence, InFlight::kContinue);
    }
    ForgetUnusedWeights();
  }
  metrics_->weight_version.Set(static_cast<double>(current_->version));
  return absl::OkStatus();
}

void BatchEngine::SwitchSequence(Sequence& sequence, InFlight in_flight) {
  if (sequence.state() == SequenceState::kFinished || sequence.weights == nullptr) return;
  if (sequence.tokens.empty() || in_flight == InFlight::kRestart) return StartAnew(sequence);
  // A chunk has one epoch: what was drawn under the old one goes out first.
  if (sequence.tokens.size() > sequence.num_sent) {
    Send(sequence, v1::FINISH_REASON_UNSPECIFIED);
  }
  sequence.weights = current_;
  if (in_flight == InFlight::kContinueStaleKv && sequence.state() == SequenceState::kDecoding) {
    sequence.stale_kv_cache = true;
    return;
  }
  cache_.Release(sequence.pages);
  sequence.cached = 0;
  if (sequence.state() != SequenceState::kEvicted) sequence.MoveTo(SequenceState::kEvicted);
}

void BatchEngine::StartAnew(Sequence& sequence) {
  cache_.Release(sequence.pages);
  sequence.cached = 0;
  sequence.weights = nullptr;
  sequence.ForgetResponse();
  sequence.MoveTo(SequenceState::kWaiting);
}

uint64_t BatchEngine::WeightsId(const WeightSet* weights) const {
  for (const auto& [set, id] : weight_sets_) {
    if (set.get() == weights) return id;
  }
  LOCKSTEP_CHECK(false, "a sequence's weights are a known set");
  return 0;
}

void BatchEngine::ForgetUnusedWeights() {
  if (weight_sets_.size() <= 1) return;
  std::erase_if(weight_sets_, [this](const auto& set) {
    if (set.first == current_) return false;
    return std::none_of(sequences_.begin(), sequences_.end(),
                        [&set](const SequencePtr& sequence) { return sequence->weights == set.first; });
  });
}

}  // namespace lockstep
