// Final answers of mathematical text: finding them in a response, and comparing them by what they mean.
#ifndef LOCKSTEP_LEARNER_VERIFIER_MATH_ANSWER_H_
#define LOCKSTEP_LEARNER_VERIFIER_MATH_ANSWER_H_

#include <optional>
#include <string>
#include <string_view>

namespace lockstep {

// Longer answers equal none.
inline constexpr size_t kMaxAnswerBytes = 4096;

// The content of the last \boxed{...} with balanced braces (\fbox too, and "\boxed 5"); else the rest of the line after
// the last "answer is", "answer:" (any case) or "####". Nothing where none of them is there.
std::optional<std::string> ExtractAnswer(std::string_view text);

// The same value, list, interval, matrix, equation or words, however they are written; docs/rewards.md has the table.
// Units and a leading "x =" may be left out, two different units differ. Bounded time for any bytes.
bool SameAnswer(std::string_view a, std::string_view b);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_VERIFIER_MATH_ANSWER_H_
