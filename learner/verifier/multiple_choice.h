// Answers of multiple-choice problems: one letter from A to E.
#ifndef LOCKSTEP_LEARNER_VERIFIER_MULTIPLE_CHOICE_H_
#define LOCKSTEP_LEARNER_VERIFIER_MULTIPLE_CHOICE_H_

#include <optional>
#include <string_view>

namespace lockstep {

// The letter of "B", "(b)", "B.", "**B**", "B) because", "\text{(B)}": text that is nothing but a choice, or begins
// with one that punctuation ends.
std::optional<char> ParseChoice(std::string_view text);

// The choice of a whole response: of its last \boxed{...} or "answer is", else of the response or of its last line
// where that is a choice. Letters within other prose are no answer.
std::optional<char> ExtractChoice(std::string_view response);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_VERIFIER_MULTIPLE_CHOICE_H_
