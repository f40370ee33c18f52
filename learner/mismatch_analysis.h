// The work of `lockstep mismatch`: log mu from the decode engine and log pi from the training pass, for each precision
// that a pair names, on the same tokens. One engine's weights are in memory at a time; each engine speaks once, however
// many pairs it is in; what it said is kept (mismatch_store.h).
#ifndef LOCKSTEP_LEARNER_MISMATCH_ANALYSIS_H_
#define LOCKSTEP_LEARNER_MISMATCH_ANALYSIS_H_

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "learner/mismatch_pairs.h"

namespace lockstep {

struct MismatchOptions {
  std::string model_dir;
  std::string prompts, tokens;  // JSON lines; exactly one of them
  std::string prompt_template;
  std::string out_dir;  // exists
  std::vector<PrecisionPair> pairs;
  // false: the first pair's rollout engine draws the tokens of all pairs. true: each pair's own does, as in the paper.
  bool own_samples = false;
  std::string lengths;  // see SampleLengths
  int64_t max_tokens = 256;
  uint64_t n = 1;      // samples a prompt
  uint64_t limit = 0;  // prompts, or lines of tokens; 0: all
  uint64_t seed = 1;
  float temperature = 1;
  int threads = 2;
  int64_t max_batch_size = 64;
  int64_t prefill_chunk_tokens = 128;
  int64_t micro_batch_tokens = 4096;  // of the training pass: whole sequences are packed up to it
  size_t max_token_points = 2000;     // a pair
};

struct MismatchHooks {
  std::function<void(const std::string& line)> log;
  std::function<bool()> stopped;  // asked between engine steps
};

// mismatch.json's content. CANCELLED when stopped.
absl::StatusOr<nlohmann::ordered_json> AnalyzeMismatch(const MismatchOptions& options, const MismatchHooks& hooks);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_MISMATCH_ANALYSIS_H_
