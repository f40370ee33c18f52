// Built-in verifiers: the reward of a response, given the problem's answer. 1 for right, 0 for wrong.
#ifndef LOCKSTEP_LEARNER_VERIFIER_VERIFIER_H_
#define LOCKSTEP_LEARNER_VERIFIER_VERIFIER_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

enum class RewardKind {
  kExact,           // response equals answer, white space at both ends aside
  kNumeric,         // the response's last number equals the answer as an exact decimal or fraction
  kMath,            // the last \boxed{...}, else what follows the last "answer is" / "Answer:" / "####", by its meaning
  kMultipleChoice,  // the letter A to E of the box, of "the answer is", or of the whole response
  kService,         // scored by a reward service (learner/reward_client.h); Score refuses it
};

// "exact", "numeric", "math", "multiple_choice", "service".
absl::StatusOr<RewardKind> ParseRewardKind(std::string_view name);

// 1.0 or 0.0. An error only for a bad problem: an answer that the kind cannot compare (numeric with answer "blue").
// Whatever the response holds, it is an answer that is right or wrong. Linear in the response's length.
absl::StatusOr<double> Score(RewardKind kind, std::string_view response, std::string_view answer);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_VERIFIER_VERIFIER_H_
