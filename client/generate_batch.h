// Many prompts through one rollout server: JSON lines in, JSON lines out.
#ifndef LOCKSTEP_CLIENT_GENERATE_BATCH_H_
#define LOCKSTEP_CLIENT_GENERATE_BATCH_H_

#include <cstdint>
#include <iosfwd>
#include <string>

#include "absl/status/status.h"
#include "proto/rollout.pb.h"

namespace lockstep {

struct BatchOptions {
  std::string name;  // of the input, for messages
  uint32_t n = 1;
  uint64_t seed = 1;
  v1::SamplingParams sampling;
};

// A line is {"prompt": TEXT} (or problem, question, input), {"tokens": [...]} or a bare JSON text. Each sample gives
// one line, prompts in the order of the input, as soon as it and all before it are done:
//   {"line": 1, "sample": 0, "prompt": ..., "text": ..., "tokens": [...], "log_probs": [...], "finish_reason": "stop"}
// "prompt_tokens" in place of "prompt" for a line of tokens. No more lines are held than the server takes at once. The
// draws of a prompt depend on (seed, line number, sample) alone.
// The first bad line ends it: NAME:LINE: what is wrong.
absl::Status GenerateBatch(std::istream& in, std::ostream& out, const BatchOptions& options,
                           const std::string& address);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_GENERATE_BATCH_H_
