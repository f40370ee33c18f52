// log-probs of given tokens under a model, as either engine computes them.
//
//   learner  one packed forward pass (Decoder::ForwardPacked), as log pi is computed in training
//   rollout  as log mu is computed by a rollout server: the prompt is prefilled into a paged KV cache in chunks, and
//            every further token is one decode step (Decoder::ForwardPaged, Logits, LogSumExp)
//
// In matched numerics both give the same bits.
#ifndef LOCKSTEP_LEARNER_SCORE_H_
#define LOCKSTEP_LEARNER_SCORE_H_

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kernels/ops.h"
#include "engine/model/decoder.h"
#include "engine/model/paged_logits.h"
#include "engine/tokenizer/tokenizer.h"

namespace lockstep {

enum class ScoreEngine { kLearner, kRollout };
// "learner", "rollout".
absl::StatusOr<ScoreEngine> ParseScoreEngine(const std::string& name);

struct ScorerOptions {
  ScoreEngine engine = ScoreEngine::kLearner;
  Numerics numerics = Numerics::kMatched;
  float temperature = 1;
  int threads = 1;
  int64_t prefill_chunk_tokens = 128;
};

class Scorer {
 public:
  Scorer(std::shared_ptr<const Weights> weights, const ScorerOptions& options);

  const ModelConfig& config() const { return weights_->config; }
  // log_probs[i]: of tokens[i + 1] given what comes before it; tokens.size() - 1 of them. The first num_prompt tokens
  // (at least 1) are prefilled. The tokens are in the vocabulary and fit the model.
  std::vector<float> LogProbs(const std::vector<int32_t>& tokens, int64_t num_prompt);

 private:
  std::vector<float> Packed(const std::vector<int32_t>& tokens);
  std::vector<float> Paged(const std::vector<int32_t>& tokens, int64_t num_prompt);
  // Computes positions [begin, end) of `tokens` and appends the log-probs of the tokens after them.
  void PagedRows(const std::vector<int32_t>& tokens, int64_t begin, int64_t end, const KvStorage& cache,
                 std::vector<float>* log_probs);

  std::shared_ptr<const Weights> weights_;
  const ScorerOptions options_;
  std::unique_ptr<Ops> ops_;
  Decoder decoder_;
  std::unique_ptr<KvStorage> cache_;  // grows with the longest sequence
  std::vector<int32_t> pages_;        // 0, 1, 2, ...
  PagedLogits logits_;
};

struct ScoreFileOptions {
  std::string name;      // of the input, for messages
  bool prefill = false;  // lines with tokens: all from the prefill, in chunks, and not token by token
};

// One JSON object a line in, one out, nothing held but a line:
//   {"tokens": [1, 2, 3]}                  the first token counts as the prompt; "num_prompt_tokens": k changes that
//   {"prompt": "...", "response": "..."}   encoded one after the other, as training does; needs a tokenizer
// out: {"log_probs": [null, -1.5, ...], "num_prompt_tokens": k}, one entry a token, the first null since nothing comes
// before it; for texts also "tokens". Entries from k on are the response's. Numbers have as many digits as it takes to
// read the same FP32 again. NaN and infinity are null.
// The first bad line ends it: NAME:LINE: what is wrong.
absl::Status ScoreLines(std::istream& in, std::ostream& out, const ScoreFileOptions& options,
                        const Tokenizer* tokenizer, Scorer& scorer);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_SCORE_H_
