// Final answers of mathematical text: finding them and comparing them after normalisation.
#ifndef LOCKSTEP_LEARNER_VERIFIER_MATH_ANSWER_H_
#define LOCKSTEP_LEARNER_VERIFIER_MATH_ANSWER_H_

#include <optional>
#include <string>
#include <string_view>

namespace lockstep {

// The content of the last \boxed{...} with balanced braces (\fbox too, and "\boxed 5"); else the rest of the line after
// the last "answer is" or "answer:" (any case). Nothing where neither is there.
std::optional<std::string> ExtractAnswer(std::string_view text);

// One spelling for what means the same: spaces, $, \left, \right, thin spaces, \text{...} units behind the value,
// degree and percent signs, \dfrac and \tfrac, \frac12, a leading "x =", a final period.
std::string NormalizeAnswer(std::string_view text);

// Equal after normalisation, as text or as exact numbers (1/2, 0.5, \frac{1}{2}). Answers beyond 4096 bytes equal none.
bool SameAnswer(std::string_view a, std::string_view b);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_VERIFIER_MATH_ANSWER_H_
