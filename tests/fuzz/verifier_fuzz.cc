// Responses and answers of any bytes: every verifier gives 0, 1 or an error, quickly, and an answer equals itself in
// both directions. The input is response, a 0xff byte, answer.
//
// fuzz sources: learner/verifier/answer.cc learner/verifier/expression.cc learner/verifier/latex_lexer.cc
// fuzz sources: learner/verifier/math_answer.cc learner/verifier/multiple_choice.cc learner/verifier/number.cc
// fuzz sources: learner/verifier/same_answer.cc learner/verifier/units.cc learner/verifier/value.cc
// fuzz sources: learner/verifier/verifier.cc
// fuzz libraries: -lgmpxx -lgmp
// fuzz seeds: tests/fuzz/seeds/verifier/*
#include <cstdint>
#include <cstdlib>
#include <string>

#include "learner/verifier/math_answer.h"
#include "learner/verifier/verifier.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t middle = input.find('\xff');
  const std::string response = input.substr(0, middle);
  const std::string answer = middle == std::string::npos ? "7" : input.substr(middle + 1);
  for (const auto kind : {lockstep::RewardKind::kExact, lockstep::RewardKind::kNumeric, lockstep::RewardKind::kMath,
                          lockstep::RewardKind::kMultipleChoice, lockstep::RewardKind::kService}) {
    const auto score = lockstep::Score(kind, response, answer);
    if (score.ok() && *score != 0 && *score != 1) std::abort();
  }
  if (lockstep::SameAnswer(response, answer) != lockstep::SameAnswer(answer, response)) std::abort();
  return 0;
}
