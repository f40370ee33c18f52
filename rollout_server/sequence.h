// One sample's life in the engine, and the group it belongs to. Values of the decode loop's thread.
//
//   waiting --admitted--> prefill --prompt is in the cache--> decoding --stop, length, ...--> finished
//      |                     |                                   |
//      |                     +-----pages run out, new weights----+--> evicted --admitted--> prefill
//      +--a sibling's prefill of the same prompt is done--> decoding
//   Any state but finished may go to finished (cancelled) or back to waiting (restart).
#ifndef LOCKSTEP_ROLLOUT_SERVER_SEQUENCE_H_
#define LOCKSTEP_ROLLOUT_SERVER_SEQUENCE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "proto/rollout.pb.h"
#include "rollout_server/kv_cache.h"

namespace lockstep {

// Bytes of routing in one message: far below gRPC's limit (proto/channel.h), whatever the prompt's length.
inline constexpr size_t kMaxRoutingBytes = size_t{1} << 20;

enum class SequenceState : uint8_t { kWaiting, kPrefill, kDecoding, kEvicted, kFinished };

const char* SequenceStateName(SequenceState state);
bool IsLegalMove(SequenceState from, SequenceState to);

// What a group's results go to: a stream of the service. Called by the decode loop's thread.
class ResultSink {
 public:
  virtual ~ResultSink() = default;
  // Takes one message; never blocks.
  virtual void Push(v1::GenerateResponse response) = 0;
  // The consumer is behind by as much as may be buffered: its samples are not decoded until it has caught up.
  virtual bool Full() const = 0;
  // The consumer has been full for too long; its samples are dropped and nothing more is pushed.
  virtual void Fail(const std::string& reason) = 0;
};

// A group of samples of one prompt, as admitted.
struct ActiveGroup {
  uint64_t id = 0;  // of this admission; unique in the process
  v1::Group spec;
  std::vector<int32_t> stop_token_ids;
  std::shared_ptr<ResultSink> sink;
  uint32_t unfinished = 0;
  double admitted_seconds = 0;  // steady clock, for the time to the first token
  bool first_token_seen = false;
  size_t routing_row_bytes = 0;                       // 0: routing is not asked for
  std::shared_ptr<const std::string> routing_sent{};  // the prompt's that was last given to the sink

  int64_t prompt_tokens() const { return spec.prompt_token_ids_size(); }
};

struct Sequence {
  std::shared_ptr<ActiveGroup> group;
  uint32_t sample_index = 0;

  // Response so far; the three have equal lengths. The version of a token never falls.
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
  std::vector<uint64_t> weight_versions;
  std::string routing;  // where it is asked for: a row a token, of the position that it was drawn from
  size_t num_sent = 0;  // tokens already given to the sink
  // Where it is asked for: experts of the prompt's positions but the last, as their first computation chose them (rows
  // of engine/model/routing.h). The samples that one prefill serves share it.
  std::shared_ptr<std::string> prompt_routing;

  // The weights of the next step; null until the first admission.
  std::shared_ptr<const WeightSet> weights;
  PageTable pages;
  int64_t cached = 0;  // positions whose keys and values are in `pages`
  // Went on over a weight switch with the cache of the old weights; stays set for the sample.
  bool stale_kv_cache = false;

  SequenceState state() const { return state_; }
  // A CHECK that the move is legal.
  void MoveTo(SequenceState state);

  // Positions known: prompt and response so far. The last one's row gives the next token's logits.
  int64_t total() const { return group->prompt_tokens() + static_cast<int64_t>(tokens.size()); }
  int32_t token_at(int64_t position) const {
    const int64_t prompt = group->prompt_tokens();
    return position < prompt ? group->spec.prompt_token_ids(static_cast<int>(position))
                             : tokens[static_cast<size_t>(position - prompt)];
  }
  // Tokens [num_sent, size) as a message, which then count as sent.
  v1::GenerateResponse TakeChunk(v1::FinishReason finish_reason);
  // Takes the row of a position that has been computed, if it is one of the prompt's that has none yet.
  void RecordPromptRow(int64_t position, const char* row);
  // The prompt's routing in messages of at most kMaxRoutingBytes (a row at least); it then counts as sent. Nothing
  // where it is not asked for, or has been sent already.
  std::vector<v1::GenerateResponse> TakePromptRouting();
  // Forgets the response: the sample starts anew, and its next chunk begins at token_index 0.
  void ForgetResponse();

 private:
  SequenceState state_ = SequenceState::kWaiting;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_SEQUENCE_H_
