// What `lockstep mismatch` has computed, kept in its out folder: samples and log-probs, each file named by a digest of
// all that its content depends on. What is there is not computed again; a file that is not whole counts as absent.
#ifndef LOCKSTEP_LEARNER_MISMATCH_STORE_H_
#define LOCKSTEP_LEARNER_MISMATCH_STORE_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "learner/mismatch_pairs.h"
#include "learner/paged_decode.h"

namespace lockstep {

// Digest of DIR/config.json, generation_config.json, tokenizer files and weights, name by name, content and all.
absl::StatusOr<std::string> ModelDigest(const std::string& dir);
// Digest of the tokens and of where the prompts end.
std::string TokensDigest(const std::vector<PromptedTokens>& sequences);

class MismatchStore {
 public:
  explicit MismatchStore(std::string folder) : folder_(std::move(folder)) {}

  // FOLDER/NAME-DIGEST.jsonl, the digest that of `key`: "name=value ..." of everything that the content depends on.
  std::string Path(const std::string& name, const std::string& key) const;

  // A line a sequence: {"prompt_tokens": [...], "tokens": [...], "log_probs": [...]}, log_probs those of the engine
  // that drew the tokens. `lockstep mismatch --tokens` and `lockstep score` read it.
  absl::Status SaveSamples(const std::string& path, const std::vector<PromptedTokens>& sequences,
                           const LogProbLists& log_probs) const;
  // The sequences with these prompts; nullopt where the file is absent or holds something else.
  std::optional<std::vector<PromptedTokens>> LoadSamples(const std::string& path,
                                                         const std::vector<PromptedTokens>& prompts,
                                                         const std::vector<int64_t>& max_tokens, int64_t vocab_size,
                                                         LogProbLists* log_probs) const;

  // A line a sequence: {"log_probs": [...]}.
  absl::Status SaveLogProbs(const std::string& path, const LogProbLists& log_probs) const;
  // nullopt where the file is absent or is not that of these sequences.
  std::optional<LogProbLists> LoadLogProbs(const std::string& path, const std::vector<PromptedTokens>& sequences) const;

 private:
  const std::string folder_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_MISMATCH_STORE_H_
