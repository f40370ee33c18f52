#include "learner/group_assembly.h"

#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace lockstep {
namespace {

// log-probs are rounded sums; a certain token may come out this much above 0.
constexpr float kMaxLogProb = 1e-3f;

template <typename... Args>
absl::Status Wrong(const v1::TokenChunk& chunk, const Args&... what) {
  return absl::InvalidArgumentError(absl::StrCat("group ", chunk.group_id(), " sample ", chunk.sample_index(),
                                                 " at token ", chunk.token_index(), ": ", what...));
}

}  // namespace

GroupAssembly::GroupAssembly(v1::Group request, const RoutingShape& routing)
    : request_(std::move(request)),
      routing_(routing),
      samples_(request_.num_samples()),
      done_(request_.num_samples(), false) {
  for (uint32_t i = 0; i < samples_.size(); ++i) samples_[i].sample_index = i;
}

v1::Group GroupAssembly::NextIssue() {
  ++attempt_;
  prompt_routing_.reset();
  v1::Group group = request_;
  group.set_attempt(attempt_);
  group.clear_sample_indices();
  for (uint32_t i = 0; i < samples_.size(); ++i) {
    if (done_[i]) continue;
    Clear(&samples_[i]);
    if (samples_done_ > 0) group.add_sample_indices(i);
  }
  return group;
}

void GroupAssembly::Clear(Sample* sample) const {
  const uint32_t index = sample->sample_index;
  *sample = Sample();
  sample->sample_index = index;
  sample->attempt = attempt_;
}

absl::Status GroupAssembly::AddPromptRouting(const v1::PromptRouting& piece) {
  if (piece.group_id() != request_.group_id() || piece.attempt() != attempt_) return absl::OkStatus();
  const auto wrong = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat("group ", piece.group_id(), ", routing of the prompt from row ",
                                                   piece.first_row(), ": ", what...));
  };
  if (!request_.routing() || routing_.layers == 0) return wrong("it was not asked for");
  if (absl::Status status = CheckRouting(routing_, piece.routing()); !status.ok()) return wrong(status.message());
  // Samples may hold the one of before.
  if (piece.first_row() == 0) prompt_routing_ = std::make_shared<std::string>();
  const size_t bytes = prompt_routing_ == nullptr ? 0 : prompt_routing_->size();
  if (piece.first_row() != bytes / routing_.row_bytes()) return wrong("row ", bytes / routing_.row_bytes(), " is next");
  if (bytes + piece.routing().size() > prompt_routing_bytes()) {
    return wrong("more rows than the prompt's ", request_.prompt_token_ids_size(), " tokens but the last");
  }
  *prompt_routing_ += piece.routing();
  return absl::OkStatus();
}

absl::Status GroupAssembly::CheckChunkRouting(const v1::TokenChunk& chunk) const {
  if (!request_.routing()) {
    return chunk.routing().empty() ? absl::OkStatus() : Wrong(chunk, "routing, which was not asked for");
  }
  const size_t bytes = static_cast<size_t>(chunk.token_ids_size()) * routing_.row_bytes();
  if (chunk.routing().size() != bytes) {
    return Wrong(chunk, chunk.token_ids_size(), " tokens with ", chunk.routing().size(), " bytes of routing, ", bytes,
                 " are needed; the server may be older than this learner");
  }
  if (absl::Status status = CheckRouting(routing_, chunk.routing()); !status.ok()) {
    return Wrong(chunk, status.message());
  }
  const size_t prompt = prompt_routing_ == nullptr ? 0 : prompt_routing_->size();
  if (chunk.token_index() == 0 && chunk.token_ids_size() > 0 && prompt != prompt_routing_bytes()) {
    return Wrong(chunk, "the first tokens came before the prompt's routing (", prompt, " of ", prompt_routing_bytes(),
                 " bytes)");
  }
  return absl::OkStatus();
}

absl::Status GroupAssembly::CheckChunk(const v1::TokenChunk& chunk, const Sample& sample) const {
  const int n = chunk.token_ids_size();
  if (chunk.log_probs_size() != n || chunk.weight_versions_size() != n) {
    return Wrong(chunk, n, " tokens, ", chunk.log_probs_size(), " log-probs and ", chunk.weight_versions_size(),
                 " weight versions");
  }
  const size_t total = sample.tokens.size() + static_cast<size_t>(n);
  if (total > request_.sampling().max_tokens()) {
    return Wrong(chunk, total, " tokens, sampling.max_tokens is ", request_.sampling().max_tokens());
  }
  if (chunk.weight_epoch() < request_.min_weight_epoch()) {
    return Wrong(chunk, "weight epoch ", chunk.weight_epoch(), " is older than ", request_.min_weight_epoch());
  }
  uint64_t version = sample.weight_versions.empty() ? request_.min_weight_version() : sample.weight_versions.back();
  for (int i = 0; i < n; ++i) {
    if (!(chunk.log_probs(i) <= kMaxLogProb) || !std::isfinite(chunk.log_probs(i))) {
      return Wrong(chunk, "log-prob ", chunk.log_probs(i), " is not that of a probability");
    }
    if (chunk.weight_versions(i) < version) {
      return Wrong(chunk, "weight version ", chunk.weight_versions(i), " after ", version);
    }
    version = chunk.weight_versions(i);
  }
  return CheckChunkRouting(chunk);
}

absl::StatusOr<GroupAssembly::Outcome> GroupAssembly::Add(const v1::TokenChunk& chunk) {
  if (chunk.group_id() != request_.group_id() || chunk.attempt() != attempt_) return Outcome::kStale;
  if (chunk.sample_index() >= samples_.size()) return Wrong(chunk, "the group has ", samples_.size(), " samples");
  if (done_[chunk.sample_index()]) return Outcome::kStale;
  Sample& sample = samples_[chunk.sample_index()];
  if (chunk.finish_reason() == v1::FINISH_REASON_CANCELLED) return Outcome::kCancelled;
  // Newer weights draw the sample anew (weight_sync.in_flight: restart); a chunk that comes twice has the version of
  // before.
  const bool anew = chunk.token_index() == 0 && !sample.tokens.empty() && chunk.weight_versions_size() > 0 &&
                    chunk.weight_versions(0) > sample.weight_versions.back();
  if (anew) Clear(&sample);
  if (chunk.token_index() < sample.tokens.size()) return Outcome::kStale;
  if (chunk.token_index() > sample.tokens.size()) {
    return Wrong(chunk, "tokens ", sample.tokens.size(), "..", chunk.token_index() - 1, " are missing");
  }
  const bool nonfinite = chunk.finish_reason() == v1::FINISH_REASON_NONFINITE;
  if (absl::Status status = CheckChunk(chunk, sample); !status.ok()) return status;
  sample.tokens.insert(sample.tokens.end(), chunk.token_ids().begin(), chunk.token_ids().end());
  sample.log_probs.insert(sample.log_probs.end(), chunk.log_probs().begin(), chunk.log_probs().end());
  sample.weight_versions.insert(sample.weight_versions.end(), chunk.weight_versions().begin(),
                                chunk.weight_versions().end());
  if (request_.routing()) {
    if (chunk.token_index() == 0 && chunk.token_ids_size() > 0) {
      if (prompt_routing_ == nullptr) prompt_routing_ = std::make_shared<std::string>();  // a prompt of one token
      sample.prompt_routing = prompt_routing_;
    }
    sample.routing += chunk.routing();
  }
  sample.weight_epoch = chunk.weight_epoch();
  sample.stale_kv_cache = sample.stale_kv_cache || chunk.stale_kv_cache();
  if (chunk.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) return Outcome::kAppended;
  if (sample.tokens.empty() && !nonfinite) return Wrong(chunk, "a finished sample has no token");
  sample.finish_reason = chunk.finish_reason();
  if (nonfinite) sample.dropped_reason = "nonfinite";
  done_[chunk.sample_index()] = true;
  ++samples_done_;
  return done() ? Outcome::kGroupDone : Outcome::kSampleDone;
}

}  // namespace lockstep
