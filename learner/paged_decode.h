// Many sequences through the decode engine as a rollout server runs it: prompts prefilled in chunks into a paged KV
// cache, then one token of each running sequence an engine step, new sequences joining as others end. The tokens are
// given (what would this engine have said of them?) or drawn here.
#ifndef LOCKSTEP_LEARNER_PAGED_DECODE_H_
#define LOCKSTEP_LEARNER_PAGED_DECODE_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "engine/kernels/ops.h"
#include "engine/model/decoder.h"

namespace lockstep {

// A prompt and its response, end to end.
struct PromptedTokens {
  std::vector<int32_t> tokens;
  int64_t num_prompt = 1;  // at least 1, at most tokens.size()
};

struct PagedDecodeOptions {
  float temperature = 1;               // of the log-probs, and of the draws
  int64_t max_batch_size = 64;         // sequences in one engine step
  int64_t prefill_chunk_tokens = 128;  // of prefill in one engine step, beside the decoding rows
  // Called after each engine step with the response tokens done so far; false ends the work with CANCELLED.
  std::function<bool(int64_t done)> progress = {};
};

// log mu of each response token: (*log_probs)[i][t] is of tokens[num_prompt + t] of sequence i. Matched numerics give
// the bits of a rollout server and of the training pass. DATA_LOSS for a log-prob that is not finite.
absl::Status DecodeGiven(const Weights& weights, Ops& ops, const PagedDecodeOptions& options,
                         const std::vector<PromptedTokens>& sequences, std::vector<std::vector<float>>* log_probs);

struct DrawOptions {
  uint64_t seed = 1;
  // A draw that ends its response; it is part of it.
  std::vector<int32_t> stop_token_ids;
};

// Draws up to max_tokens[i] response tokens to sequence i, which holds its prompt alone, and appends them. A draw
// depends on (seed, sequence, position) and the distribution alone, not on the batch.
absl::Status DecodeDrawn(const Weights& weights, Ops& ops, const PagedDecodeOptions& options, const DrawOptions& draw,
                         const std::vector<int64_t>& max_tokens, std::vector<PromptedTokens>* sequences,
                         std::vector<std::vector<float>>* log_probs);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_PAGED_DECODE_H_
