#include "rollout_server/batch_engine.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/steady_seconds.h"

namespace lockstep {
BatchEngine::BatchEngine(const BatchEngineOptions& options, std::unique_ptr<StepBackend> backend,
                         std::shared_ptr<const WeightSet> weights, RolloutMetrics* metrics)
    : options_(options),
      backend_(std::move(backend)),
      metrics_(metrics),
      config_(weights->config),
      dtype_(weights->dtype),
      routing_shape_(config_),
      cache_(backend_->num_pages()),
      current_(std::move(weights)) {
  LOCKSTEP_CHECK(options.limits.max_decode_rows > 0 && options.limits.prefill_chunk_tokens > 0, "limits are positive");
  weight_sets_.emplace_back(current_, next_weights_id_++);
  metrics_->kv_cache_blocks.Set(static_cast<double>(backend_->num_pages()));
  metrics_->kv_cache_blocks_used.Set(0);
  metrics_->weight_version.Set(static_cast<double>(current_->version));
}

BatchEngine::~BatchEngine() {
  for (SequencePtr& sequence : sequences_) cache_.Release(sequence->pages);
  ReleaseHeld(flight_);
  LOCKSTEP_CHECK(cache_.used_pages() == 0, "every page is given back");
}

bool BatchEngine::Step() {
  if (idle()) return false;
  const double begin = SteadySeconds();
  if (!flight_.launched) {
    const StepPlan plan = NextPlan();
    if (plan.action == StepPlan::Action::kRun) Launch(plan, flight_);
  }
  if (flight_.launched) LaunchAhead();
  if (flight_.launched) return CollectStep(begin);
  RemoveFinished();
  ForgetUnusedWeights();
  return false;
}

void BatchEngine::CheckBackend() {
  if (!failure_.ok()) return;
  if (absl::Status status = backend_->Check(); !status.ok()) Fail(std::move(status));
}

StepPlan BatchEngine::PlanOnce() {
  FillViews();
  EndStalledConsumers();
  return PlanStep(views_, cache_.free_pages(), options_.limits, last_weights_id_);
}

StepPlan BatchEngine::NextPlan() {
  while (true) {
    StepPlan plan = PlanOnce();
    if (plan.action != StepPlan::Action::kEvict) return plan;
    Evict(*sequences_[plan.victim]);
  }
}

void BatchEngine::FillViews() {
  // How many pages an eviction would free matters only when pages may run out in this step.
  const bool scarce = cache_.free_pages() <= options_.limits.max_decode_rows;
  const ResultSink* sink = nullptr;
  bool full = false;
  size_t at = 0;
  views_.clear();
  for (const SequencePtr& pointer : sequences_) {
    const Sequence& sequence = *pointer;
    if (sequence.group->sink.get() != sink) {
      sink = sequence.group->sink.get();
      full = sink->Full();
      if (full) {
        full_since_.try_emplace(sink, SteadySeconds());
      } else {
        full_since_.erase(sink);
      }
    }
    SequenceView view;
    view.state = sequence.state();
    view.weights_id = WeightsId(sequence.weights != nullptr ? sequence.weights.get() : current_.get());
    view.group = sequence.group->id;
    view.fresh = sequence.tokens.empty();
    view.blocked = full;
    view.stale_kv_cache = sequence.stale_kv_cache;
    view.prompt = sequence.group->prompt_tokens();
    view.total = sequence.total();
    view.cached = sequence.cached;
    view.pages_held = sequence.pages.size();
    view.exclusive_pages = scarce ? cache_.ExclusivePages(sequence.pages) : view.pages_held;
    if (view.state == SequenceState::kDecoding) {
      view.append_pages = cache_.PagesToAppend(sequence.pages, sequence.cached, 1);
      if (flight_.launched && flight_.RowOf(sequence, &at) >= 0) {
        ++view.total;
        const bool ends = sequence.tokens.size() + 1 >= sequence.group->spec.sampling().max_tokens();
        if (ends) view.state = SequenceState::kFinished;
      }
    }
    views_.push_back(view);
  }
}

absl::Status BatchEngine::PlacePages(const StepPlan& plan) {
  for (const BatchEntry& entry : plan.entries) {
    Sequence& sequence = *sequences_[entry.sequence];
    if (entry.admitted) {
      if (sequence.weights == nullptr) BindGroup(*sequence.group);
      if (entry.shared > 0) {
        const Sequence& donor = *sequences_[entry.donor];
        cache_.Share(donor.pages, entry.shared, sequence.pages);
        if (sequence.prompt_routing == nullptr) sequence.prompt_routing = donor.prompt_routing;
      }
      sequence.MoveTo(SequenceState::kPrefill);
    }
    // An admission takes the pages of everything it will prefill; a prefill under way has them.
    const int64_t end = entry.admitted ? sequence.total() : entry.begin + entry.count;
    const KvCache::Appended appended = cache_.Append(sequence.pages, entry.begin, end - entry.begin);
    LOCKSTEP_CHECK(appended.ok, "a plan takes only pages that are free");
    if (!appended.copy.has_value()) continue;
    const KvCache::PageCopy& copy = *appended.copy;
    if (absl::Status status = backend_->CopyPage(copy.from, copy.to, copy.tokens); !status.ok()) return status;
  }
  return absl::OkStatus();
}

void BatchEngine::BindGroup(const ActiveGroup& group) {
  for (const SequencePtr& sequence : sequences_) {
    if (sequence->group.get() == &group && sequence->weights == nullptr) sequence->weights = current_;
  }
}

void BatchEngine::EndNonfinite(std::span<Sequence* const> drawers) {
  metrics_->nonfinite_logits.Increment();
  for (Sequence* sequence : drawers) Finish(*sequence, v1::FINISH_REASON_NONFINITE);
}

void BatchEngine::CountFirstToken(ActiveGroup& group) {
  if (group.first_token_seen) return;
  group.first_token_seen = true;
  metrics_->time_to_first_token_seconds.Observe(SteadySeconds() - group.admitted_seconds);
}

void BatchEngine::Fork(const Sequence& leader, Sequence& sibling) {
  cache_.Share(leader.pages, leader.cached, sibling.pages);
  sibling.cached = leader.cached;
  sibling.weights = leader.weights;
  sibling.prompt_routing = leader.prompt_routing;
  sibling.MoveTo(SequenceState::kDecoding);
}

void BatchEngine::Append(Sequence& sequence, const Draw& draw, const char* routing) {
  const v1::Group& spec = sequence.group->spec;
  sequence.tokens.push_back(draw.token);
  sequence.log_probs.push_back(draw.log_prob);
  sequence.weight_versions.push_back(sequence.weights->version);
  if (const size_t row_bytes = sequence.group->routing_row_bytes; row_bytes > 0) {
    sequence.routing.append(routing, row_bytes);
  }
  ++counted_.generated_tokens;
  metrics_->generated_tokens.Increment();
  const std::vector<int32_t>& stops = sequence.group->stop_token_ids;
  if (std::find(stops.begin(), stops.end(), draw.token) != stops.end()) {
    Finish(sequence, v1::FINISH_REASON_STOP);
  } else if (sequence.tokens.size() >= spec.sampling().max_tokens()) {
    Finish(sequence, v1::FINISH_REASON_LENGTH);
  } else if (sequence.tokens.size() - sequence.num_sent >= kChunkTokens) {
    Send(sequence, v1::FINISH_REASON_UNSPECIFIED);
  }
}

void BatchEngine::Send(Sequence& sequence, v1::FinishReason reason) {
  ResultSink& sink = *sequence.group->sink;
  if (sequence.num_sent == 0 && !sequence.tokens.empty()) {
    for (v1::GenerateResponse& piece : sequence.TakePromptRouting()) sink.Push(std::move(piece));
  }
  sink.Push(sequence.TakeChunk(reason));
}

void BatchEngine::Finish(Sequence& sequence, v1::FinishReason reason) {
  ActiveGroup& group = *sequence.group;
  Send(sequence, reason);
  metrics_->Finished(reason).Increment();
  metrics_->response_length_tokens.Observe(static_cast<double>(sequence.tokens.size()));
  Drop(sequence);
  if (group.unfinished == 0) {
    // A consumer may be gone after its last group; while one is full, only a cancellation ends a group.
    full_since_.erase(group.sink.get());
    v1::GenerateResponse credit;
    credit.mutable_credits()->set_groups(1);
    group.sink->Push(std::move(credit));
  }
}

void BatchEngine::Drop(Sequence& sequence) {
  if (flight_.launched && flight_.Forget(sequence)) {
    flight_.held.push_back(std::exchange(sequence.pages, {}));
  } else {
    cache_.Release(sequence.pages);
  }
  sequence.cached = 0;
  sequence.weights = nullptr;
  sequence.MoveTo(SequenceState::kFinished);
  --sequence.group->unfinished;
}

void BatchEngine::Evict(Sequence& sequence) {
  LOCKSTEP_CHECK(sequence.pages.size() > 0, "an evicted sequence has pages");
  cache_.Release(sequence.pages);
  sequence.cached = 0;
  sequence.MoveTo(SequenceState::kEvicted);
  ++counted_.preemptions;
  metrics_->preemptions.Increment();
}

void BatchEngine::RemoveFinished() {
  std::erase_if(sequences_, [](const SequencePtr& s) { return s->state() == SequenceState::kFinished; });
}

void BatchEngine::EndStalledConsumers() {
  if (full_since_.empty()) return;
  const double now = SteadySeconds();
  std::vector<const ResultSink*> stalled;
  for (const auto& [sink, since] : full_since_) {
    if (now - since > options_.stall_limit_seconds) stalled.push_back(sink);
  }
  if (stalled.empty()) return;
  for (const ResultSink* sink : stalled) {
    for (const SequencePtr& sequence : sequences_) {
      if (sequence->group->sink.get() != sink) continue;
      sequence->group->sink->Fail("the consumer has not read for too long; its samples were dropped");
      break;
    }
    Close(sink);
  }
  FillViews();
}

void BatchEngine::Fail(absl::Status status) {
  failure_ = std::move(status);
  const std::string reason = absl::StrCat("the engine has failed: ", std::string(failure_.message()));
  while (!sequences_.empty()) {
    const std::shared_ptr<ResultSink> sink = sequences_.front()->group->sink;
    sink->Fail(reason);
    Close(sink.get());
  }
  for (Flight* flight : {&flight_, &other_}) {
    flight->launched = false;
    ReleaseHeld(*flight);
  }
}

EngineStats BatchEngine::stats() const {
  EngineStats stats = counted_;
  for (const SequencePtr& sequence : sequences_) {
    const bool has_pages =
        sequence->state() == SequenceState::kPrefill || sequence->state() == SequenceState::kDecoding;
    ++(has_pages ? stats.running : stats.waiting);
  }
  stats.pages_used = cache_.used_pages();
  stats.weight_epoch = current_->epoch;
  stats.weight_version = current_->version;
  return stats;
}

}  // namespace lockstep
