// The scheduler: a pure function from (sequences, free pages, limits) to the next engine step.
//
// Order of precedence in a step: (1) decode rows, oldest first, up to max_decode_rows; (2) prefill, oldest first, up to
// prefill_chunk_tokens: prefills under way go on, then waiting and evicted sequences are admitted strictly by age.
// An admission takes the pages of all tokens known so far plus one page for each decoding sequence, so that it is not
// evicted at once; a decode row that finds no page evicts the youngest holder younger than itself (consumers that do
// not read are evicted first, whatever their age).
//
// Why it cannot stop: a request is accepted only if its longest form fits the whole pool; the oldest sequence that
// decodes may take the pages of every other; admission has no overtaking, and when nothing holds pages the oldest
// waiting sequence fits by itself. So the oldest always moves.
//
// Sequences of different weight sets never share a step; the sets take turns.
#ifndef LOCKSTEP_ROLLOUT_SERVER_SCHEDULER_H_
#define LOCKSTEP_ROLLOUT_SERVER_SCHEDULER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "rollout_server/sequence.h"

namespace lockstep {

// What the scheduler sees of a sequence. Views are passed in age order, oldest first.
struct SequenceView {
  SequenceState state = SequenceState::kWaiting;
  uint64_t weights_id = 0;      // weight set of its next step
  uint64_t group = 0;           // samples of one prompt
  bool fresh = false;           // no response token yet: forks from its sibling's prefill
  bool blocked = false;         // its consumer does not read
  bool stale_kv_cache = false;  // its pages are not of its weights: nobody may share them
  int64_t prompt = 0;           // tokens
  int64_t total = 0;            // prompt + response so far
  int64_t cached = 0;           // positions in the cache
  int64_t pages_held = 0;
  int64_t exclusive_pages = 0;  // freed by an eviction
  int64_t append_pages = 0;     // fresh pages that one more row takes (decoding only)
};

struct SchedulerLimits {
  int64_t max_decode_rows = 1;
  int64_t prefill_chunk_tokens = 1;
};

struct BatchEntry {
  size_t sequence = 0;       // index of the view
  int64_t begin = 0;         // first position computed
  int64_t count = 0;         // positions computed
  bool admitted = false;     // takes pages for all of its `total` positions now
  int64_t shared = 0;        // admitted: whole-page prompt positions taken over from `donor`
  size_t donor = 0;          // index of the view, if shared > 0
  bool gives_token = false;  // the last position is the sequence's last: its logits give the next token
};

struct StepPlan {
  enum class Action : uint8_t { kRun, kEvict, kIdle };
  Action action = Action::kIdle;
  uint64_t weights_id = 0;
  std::vector<BatchEntry> entries{};  // kRun
  size_t victim = 0;                  // kEvict: release its pages, then plan again
  const char* reason = "";
};

// last_weights_id: weight set of the step before, which comes last in the turn.
StepPlan PlanStep(std::span<const SequenceView> sequences, int64_t free_pages, const SchedulerLimits& limits,
                  uint64_t last_weights_id);

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_SCHEDULER_H_
