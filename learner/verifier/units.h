// Units behind a number: one name for the spellings of a unit.
#ifndef LOCKSTEP_LEARNER_VERIFIER_UNITS_H_
#define LOCKSTEP_LEARNER_VERIFIER_UNITS_H_

#include <string_view>

namespace lockstep {

// "cm" for "cm", "centimeters", "square cm", "sq. centimetres", ...; empty for words that name no unit known here.
// Lower case, single spaces, no points.
std::string_view KnownUnit(std::string_view words);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_VERIFIER_UNITS_H_
