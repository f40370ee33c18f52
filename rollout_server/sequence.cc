#include "rollout_server/sequence.h"

#include <algorithm>
#include <utility>

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
  if (const size_t row = group->routing_row_bytes; row > 0) {
    LOCKSTEP_CHECK(routing.size() == tokens.size() * row, "a token has a row of routing");
    chunk->set_routing(routing.substr(num_sent * row));
  }
  chunk->set_finish_reason(finish_reason);
  if (weights != nullptr) chunk->set_weight_epoch(weights->epoch);
  chunk->set_stale_kv_cache(stale_kv_cache);
  num_sent = tokens.size();
  return response;
}

void Sequence::RecordPromptRow(int64_t position, const char* row) {
  const size_t row_bytes = group->routing_row_bytes;
  if (position >= group->prompt_tokens() - 1) return;
  if (prompt_routing == nullptr) prompt_routing = std::make_shared<std::string>();
  const size_t next = prompt_routing->size() / row_bytes;
  LOCKSTEP_CHECK(static_cast<size_t>(position) <= next, "a prompt's positions are computed in order");
  if (static_cast<size_t>(position) == next) prompt_routing->append(row, row_bytes);
}

std::vector<v1::GenerateResponse> Sequence::TakePromptRouting() {
  std::vector<v1::GenerateResponse> responses;
  if (prompt_routing == nullptr || group->routing_sent == prompt_routing) return responses;
  const size_t row_bytes = group->routing_row_bytes, rows = prompt_routing->size() / row_bytes;
  LOCKSTEP_CHECK(static_cast<int64_t>(rows) == group->prompt_tokens() - 1, "the prompt has been computed");
  const size_t most = std::max<size_t>(1, kMaxRoutingBytes / row_bytes);
  for (size_t row = 0; row < rows; row += most) {
    v1::PromptRouting* piece = responses.emplace_back().mutable_prompt_routing();
    piece->set_group_id(group->spec.group_id());
    piece->set_attempt(group->spec.attempt());
    piece->set_first_row(static_cast<uint32_t>(row));
    piece->set_routing(prompt_routing->substr(row * row_bytes, most * row_bytes));
  }
  group->routing_sent = prompt_routing;
  return responses;
}

void Sequence::ForgetResponse() {
  tokens.clear();
  log_probs.clear();
  weight_versions.clear();
  routing.clear();
  prompt_routing.reset();
  num_sent = 0;
  stale_kv_cache = false;
}

}  // namespace lockstep
