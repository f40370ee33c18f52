#include "rollout_server/scheduler.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"

namespace lockstep {
namespace {

// Whole pages of the prompt that a sample with `total` tokens could take over from a sibling; at least one row is left
// to compute, since its logits are wanted.
int64_t SharablePrefix(const SequenceView& view) {
  return std::min(view.prompt, view.total - 1) / kPageTokens * kPageTokens;
}

// What is known of the samples of one prompt under one weight set.
struct Siblings {
  bool fresh_prefill = false;          // its end forks all fresh siblings
  int64_t prefill_cached = INT64_MAX;  // least advanced prefill under way
  int64_t donor_cached = 0;
  size_t donor = 0;
};

class Planner {
 public:
  Planner(std::span<const SequenceView> views, int64_t free_pages, const SchedulerLimits& limits, uint64_t weights_id)
      : views_(views), free_(free_pages), limits_(limits) {
    plan_.weights_id = weights_id;
    for (size_t i = 0; i < views_.size(); ++i) Observe(i);
  }

  StepPlan Run() {
    if (PlanDecode() && PlanPrefill() && !plan_.entries.empty()) plan_.action = StepPlan::Action::kRun;
    return std::move(plan_);
  }

 private:
  bool Mine(const SequenceView& view) const {
    return view.weights_id == plan_.weights_id && !view.blocked && view.state != SequenceState::kFinished;
  }

  void Observe(size_t i) {
    const SequenceView& view = views_[i];
    if (view.pages_held > 0 && !view.blocked) ++holders_;
    if (view.state == SequenceState::kDecoding) ++decoding_;
    if (view.weights_id != plan_.weights_id || view.stale_kv_cache) return;
    Siblings& siblings = siblings_[view.group];
    // A blocked prefill does not go on, so nobody waits for it.
    if (view.state == SequenceState::kPrefill && !view.blocked) NotePrefill(siblings, view, view.cached);
    const bool holds = view.state == SequenceState::kPrefill || view.state == SequenceState::kDecoding;
    if (holds && view.cached > siblings.donor_cached) {
      siblings.donor_cached = view.cached;
      siblings.donor = i;
    }
  }

  static void NotePrefill(Siblings& siblings, const SequenceView& view, int64_t cached) {
    siblings.fresh_prefill |= view.fresh;
    siblings.prefill_cached = std::min(siblings.prefill_cached, cached);
  }

  // Decode rows. False: the plan is an eviction.
  bool PlanDecode() {
    for (size_t i = 0; i < views_.size() && rows_ < limits_.max_decode_rows; ++i) {
      const SequenceView& view = views_[i];
      if (!Mine(view) || view.state != SequenceState::kDecoding) continue;
      if (view.append_pages > free_) {
        if (Evict(i)) return false;
        continue;  // the youngest holder waits for older ones to finish
      }
      free_ -= view.append_pages;
      ++rows_;
      plan_.entries.push_back({.sequence = i, .begin = view.cached, .count = 1, .gives_token = true});
    }
    return true;
  }

  // Chooses who gives pages to views_[needy]: blocked holders of any age, then the youngest younger than it; those that
  // hold pages of their own first. Nobody whose row is already in the step.
  bool Evict(size_t needy) {
    for (const bool blocked : {true, false}) {
      for (const bool exclusive : {true, false}) {
        for (size_t i = views_.size(); i-- > (blocked ? 0 : needy + 1);) {
          const SequenceView& view = views_[i];
          if (i == needy || view.blocked != blocked) continue;
          if ((exclusive ? view.exclusive_pages : view.pages_held) == 0) continue;
          plan_ = StepPlan{.action = StepPlan::Action::kEvict,
                           .weights_id = plan_.weights_id,
                           .victim = i,
                           .reason = blocked ? "its consumer does not read" : "an older sequence needs the pages"};
          return true;
        }
      }
    }
    return false;
  }

  // Prefills under way, then admissions. False: the plan is an eviction.
  bool PlanPrefill() {
    if (rows_ >= limits_.max_decode_rows) return true;
    int64_t budget = limits_.prefill_chunk_tokens;
    for (size_t i = 0; i < views_.size() && budget > 0; ++i) {
      if (Mine(views_[i]) && views_[i].state == SequenceState::kPrefill) {
        budget -= AddPrefill({.sequence = i, .begin = views_[i].cached}, budget);
      }
    }
    for (size_t i = 0; i < views_.size() && budget > 0; ++i) {
      const SequenceView& view = views_[i];
      if (!Mine(view) || (view.state != SequenceState::kWaiting && view.state != SequenceState::kEvicted)) continue;
      Siblings& siblings = siblings_[view.group];
      if (WaitsForSibling(view, siblings)) continue;
      const int64_t prefix = SharablePrefix(view);
      const int64_t shared = prefix > 0 && siblings.donor_cached >= prefix ? prefix : 0;
      const int64_t needed = PagesFor(view.total) - shared / kPageTokens;
      const bool alone = holders_ == 0 && plan_.entries.empty();
      if (needed + (alone ? 0 : std::min(decoding_, limits_.max_decode_rows)) > free_) {
        if (alone && Evict(i)) return false;
        break;  // no overtaking
      }
      free_ -= needed;
      NotePrefill(siblings, view, shared);
      budget -= AddPrefill(
          {.sequence = i, .begin = shared, .admitted = true, .shared = shared, .donor = siblings.donor}, budget);
    }
    return true;
  }

  // A sample that can take the prompt over from a sibling's prefill waits for it.
  static bool WaitsForSibling(const SequenceView& view, const Siblings& siblings) {
    if (view.fresh && siblings.fresh_prefill) return true;
    const int64_t prefix = SharablePrefix(view);
    return prefix > 0 && siblings.donor_cached < prefix && siblings.prefill_cached < prefix;
  }

  int64_t AddPrefill(BatchEntry entry, int64_t budget) {
    const int64_t total = views_[entry.sequence].total;
    entry.count = std::min(budget, total - entry.begin);
    entry.gives_token = entry.begin + entry.count == total;
    plan_.entries.push_back(entry);
    return entry.count;
  }

  std::span<const SequenceView> views_;
  int64_t free_;
  const SchedulerLimits limits_;
  StepPlan plan_;
  absl::flat_hash_map<uint64_t, Siblings> siblings_;
  int64_t holders_ = 0;   // sequences with pages whose consumers read
  int64_t decoding_ = 0;  // sequences that may soon take a page
  int64_t rows_ = 0;
};

}  // namespace

StepPlan PlanStep(std::span<const SequenceView> sequences, int64_t free_pages, const SchedulerLimits& limits,
                  uint64_t last_weights_id) {
  std::vector<uint64_t> sets;
  for (const SequenceView& view : sequences) {
    if (view.blocked || view.state == SequenceState::kFinished) continue;
    if (std::find(sets.begin(), sets.end(), view.weights_id) == sets.end()) sets.push_back(view.weights_id);
  }
  // Each set's turn: the one after the last, in the order of ids.
  std::sort(sets.begin(), sets.end());
  const auto next = std::upper_bound(sets.begin(), sets.end(), last_weights_id);
  std::rotate(sets.begin(), next, sets.end());
  for (uint64_t set : sets) {
    StepPlan plan = Planner(sequences, free_pages, limits, set).Run();
    if (plan.action != StepPlan::Action::kIdle) return plan;
  }
  return StepPlan{.reason = sets.empty() ? "nothing to do" : "every sequence waits for pages"};
}

}  // namespace lockstep
