#include "rollout_server/sequence.h"

#include "engine/base/check.h"

namespace lockstep {

const char* SequenceStateName(SequenceState state) {
  switch (state) {
    case SequenceState::kWaiting:
      return "waiting";
    case SequenceState::kPrefill:
      return "prefill";
    case SequenceState::kDecoding:
      return "decoding";
    case SequenceState::kEvicted:
      return "evicted";
    case SequenceState::kFinished:
      return "finished";
  }
  return "?";
}

bool IsLegalMove(SequenceState from, SequenceState to) {
  if (from == SequenceState::kFinished) return false;
  switch (to) {
    case SequenceState::kWaiting:
    case SequenceState::kFinished:
      return true;
    case SequenceState::kPrefill:
      return from == SequenceState::kWaiting || from == SequenceState::kEvicted;
    case SequenceState::kDecoding:
      return from == SequenceState::kPrefill || from == SequenceState::kWaiting;
    case SequenceState::kEvicted:
      return from == SequenceState::kPrefill || from == SequenceState::kDecoding;
  }
  return false;
}

void Sequence::MoveTo(SequenceState state) {
  LOCKSTEP_CHECK(IsLegalMove(state_, state), SequenceStateName(state));
  state_ = state;
}

v1::GenerateResponse Sequence::TakeChunk(v1::FinishReason finish_reason) {
  LOCKSTEP_CHECK(tokens.size() == log_probs.size() && tokens.size() == weight_versions.size(),
                 "a token has a log-prob and a version");
  v1::GenerateResponse response;
  v1::TokenChunk* chunk = response.mutable_chunk();
  chunk->set_group_id(group->spec.group_id());
  chunk->set_attempt(group->spec.attempt());
  chunk->set_sample_index(sample_index);
  chunk->set_token_index(static_cast<uint32_t>(num_sent));
  const auto sent = static_cast<std::ptrdiff_t>(num_sent);
  chunk->mutable_token_ids()->Add(tokens.begin() + sent, tokens.end());
  chunk->mutable_log_probs()->Add(log_probs.begin() + sent, log_probs.end());
  chunk->mutable_weight_versions()->Add(weight_versions.begin() + sent, weight_versions.end());
  chunk->set_finish_reason(finish_reason);
  if (weights != nullptr) chunk->set_weight_epoch(weights->epoch);
  chunk->set_stale_kv_cache(stale_kv_cache);
  num_sent = tokens.size();
  return response;
}

void Sequence::ForgetResponse() {
  tokens.clear();
  log_probs.clear();
  weight_versions.clear();
  num_sent = 0;
  stale_kv_cache = false;
}

}  // namespace lockstep
