// The steps of a BatchEngine: what a plan becomes, between Launch and Collect, and afterwards.
#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/steady_seconds.h"
#include "rollout_server/batch_engine.h"

namespace lockstep {

bool BatchEngine::Flight::Forget(const Sequence& sequence) {
  bool found = false;
  for (Rows& entry : rows) {
    if (entry.sequence != &sequence) continue;
    entry.sequence = nullptr;
    found = true;
  }
  std::replace(drawers.begin(), drawers.end(), const_cast<Sequence*>(&sequence), static_cast<Sequence*>(nullptr));
  return found;
}

int32_t BatchEngine::Flight::RowOf(const Sequence& sequence, size_t* at) const {
  const auto found = std::find(drawers.begin() + static_cast<std::ptrdiff_t>(*at), drawers.end(), &sequence);
  if (found == drawers.end()) return -1;
  const auto row = static_cast<size_t>(found - drawers.begin());
  *at = row + 1;
  return static_cast<int32_t>(row);
}

void BatchEngine::Launch(const StepPlan& plan, Flight& flight) {
  last_weights_id_ = plan.weights_id;
  if (absl::Status status = PlacePages(plan); !status.ok()) return Fail(std::move(status));
  flight.weights = sequences_[plan.entries.front().sequence]->weights;
  FillBatch(plan, flight);
  const StepInput input = {batch_, flight.draws, flight.wants_routing, from_};
  if (absl::Status status = backend_->Launch(*flight.weights, input); !status.ok()) return Fail(std::move(status));
  flight.launched = true;
}

void BatchEngine::LaunchAhead() {
  if (!options_.launch_ahead || !backend_->launches_ahead() || !flight_.decodes_alone) return;
  const StepPlan plan = PlanOnce();
  const bool decodes_alone = plan.action == StepPlan::Action::kRun &&
                             std::all_of(plan.entries.begin(), plan.entries.end(), [this](const BatchEntry& entry) {
                               return views_[entry.sequence].state == SequenceState::kDecoding;
                             });
  if (decodes_alone) Launch(plan, other_);
}

void BatchEngine::FillBatch(const StepPlan& plan, Flight& flight) {
  batch_.tokens.clear();
  batch_.positions.clear();
  batch_.sequences.clear();
  batch_.output_rows.clear();
  from_.clear();
  flight.ahead = flight_.launched;
  flight.decodes_alone = true;
  flight.wants_routing = false;
  flight.rows.clear();
  flight.draws.clear();
  flight.drawers.clear();
  flight.decode_rows = flight.prompt_tokens = 0;
  size_t at = 0;
  for (const BatchEntry& entry : plan.entries) {
    Sequence& sequence = *sequences_[entry.sequence];
    LOCKSTEP_CHECK(sequence.weights == flight.weights, "a step has one weight set");
    const int64_t end = entry.begin + entry.count;
    batch_.sequences.push_back({.row_begin = static_cast<int64_t>(batch_.tokens.size()),
                                .row_count = entry.count,
                                .position_begin = entry.begin,
                                .pages = sequence.pages.pages()});
    flight.rows.push_back({&sequence, entry.begin, entry.count});
    flight.wants_routing |= sequence.group->routing_row_bytes > 0;
    if (views_[entry.sequence].state == SequenceState::kDecoding) {
      ++flight.decode_rows;
    } else {
      flight.decodes_alone = false;
      flight.prompt_tokens += std::max<int64_t>(0, std::min(end, sequence.group->prompt_tokens()) - entry.begin);
    }
    const int32_t from = flight_.launched ? flight_.RowOf(sequence, &at) : -1;
    if (flight_.launched) from_.push_back(from);
    for (int64_t position = entry.begin; position < end; ++position) {
      batch_.tokens.push_back(from >= 0 ? 0 : sequence.token_at(position));
      batch_.positions.push_back(static_cast<int32_t>(position));
    }
    sequence.cached = end;
    if (!entry.gives_token) continue;
    LOCKSTEP_CHECK(sequence.cached == sequence.total() + (from >= 0 ? 1 : 0), "the output row is the last token's");
    batch_.output_rows.push_back(static_cast<int32_t>(batch_.tokens.size() - 1));
    if (sequence.tokens.empty()) AddSiblings(sequence, flight);
    AddDraw(sequence, sequence.tokens.size() + (from >= 0 ? 1 : 0), flight);
  }
  flight.output_rows = batch_.output_rows;
}

void BatchEngine::AddSiblings(const Sequence& sequence, Flight& flight) {
  const std::vector<Sequence*>& drawers = flight.drawers;
  for (const SequencePtr& pointer : sequences_) {
    Sequence& sibling = *pointer;
    if (&sibling == &sequence || sibling.group != sequence.group || !sibling.tokens.empty()) continue;
    if (sibling.state() != SequenceState::kWaiting) continue;
    if (std::find(drawers.begin(), drawers.end(), &sibling) == drawers.end()) AddDraw(sibling, 0, flight);
  }
}

void BatchEngine::AddDraw(Sequence& sequence, size_t token_index, Flight& flight) {
  const v1::Group& spec = sequence.group->spec;
  const v1::SamplingParams& sampling = spec.sampling();
  DrawRequest request;
  request.output_row = static_cast<int64_t>(batch_.output_rows.size()) - 1;
  request.transform = {.temperature = sampling.temperature(), .top_p = sampling.top_p(), .top_k = sampling.top_k()};
  request.key = {.seed = spec.seed(),
                 .group_id = spec.group_id(),
                 .sample_index = sequence.sample_index,
                 .token_index = static_cast<uint32_t>(token_index)};
  flight.draws.push_back(request);
  flight.drawers.push_back(&sequence);
}

bool BatchEngine::CollectStep(double begin) {
  std::swap(flight_, other_);
  Flight& collected = other_;
  collected.launched = false;
  if (absl::Status status = backend_->Collect(&output_); !status.ok()) {
    Fail(std::move(status));
    return false;
  }
  counted_.decoder_seconds += output_.decoder_seconds;
  if (collected.wants_routing) RecordPrompts(collected);
  TakeDraws(collected);
  ReleaseHeld(collected);
  collected.weights = nullptr;
  RemoveFinished();
  ForgetUnusedWeights();
  CountStep(collected, SteadySeconds() - begin);
  return true;
}

void BatchEngine::Drain() {
  if (flight_.launched) CollectStep(SteadySeconds());
}

void BatchEngine::ReleaseHeld(Flight& flight) {
  for (PageTable& pages : flight.held) cache_.Release(pages);
  flight.held.clear();
}

void BatchEngine::RecordPrompts(const Flight& flight) {
  const char* row = output_.routing.data();
  for (const Flight::Rows& rows : flight.rows) {
    for (int64_t i = 0; i < rows.count; ++i, row += routing_shape_.row_bytes()) {
      if (rows.sequence == nullptr || rows.sequence->group->routing_row_bytes == 0) continue;
      rows.sequence->RecordPromptRow(rows.begin + i, row);
    }
  }
}

void BatchEngine::TakeDraws(const Flight& flight) {
  const std::vector<DrawRequest>& draws = flight.draws;
  for (size_t first = 0, end = 0; first < draws.size(); first = end) {
    const auto row = static_cast<size_t>(draws[first].output_row);
    while (end < draws.size() && draws[end].output_row == draws[first].output_row) ++end;
    const std::span drawers = std::span(flight.drawers).subspan(first, end - first);
    if (drawers.back() == nullptr) continue;  // of decode rows: the only one
    if (output_.finite[row] == 0) {
      EndNonfinite(drawers);
      continue;
    }
    const char* routing =
        output_.routing.empty()
            ? nullptr
            : output_.routing.data() + static_cast<size_t>(flight.output_rows[row]) * routing_shape_.row_bytes();
    Sequence& leader = *drawers.back();
    if (leader.state() == SequenceState::kPrefill) leader.MoveTo(SequenceState::kDecoding);
    if (leader.tokens.empty()) CountFirstToken(*leader.group);
    for (size_t i = 0; i < drawers.size(); ++i) {
      if (drawers[i] != &leader) Fork(leader, *drawers[i]);
      Append(*drawers[i], output_.draws[first + i], routing);
    }
  }
}

void BatchEngine::CountStep(const Flight& flight, double seconds) {
  ++counted_.steps;
  if (flight.ahead) {
    ++counted_.steps_ahead;
    metrics_->steps_ahead.Increment();
  }
  counted_.step_seconds += seconds;
  if (flight.prompt_tokens > 0) metrics_->prompt_tokens.Increment(static_cast<double>(flight.prompt_tokens));
  if (flight.decode_rows > 0) metrics_->batch_size.Observe(static_cast<double>(flight.decode_rows));
  metrics_->step_seconds.Observe(seconds);
  metrics_->registry->RecordProgress();
}

}  // namespace lockstep
