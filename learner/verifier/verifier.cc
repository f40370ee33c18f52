#include "learner/verifier/verifier.h"

#include "absl/strings/str_cat.h"
#include "learner/verifier/math_answer.h"
#include "learner/verifier/multiple_choice.h"
#include "learner/verifier/number.h"

namespace lockstep {
namespace {

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::string Quoted(std::string_view text) {
  constexpr size_t kLimit = 60;
  return text.size() <= kLimit ? "\"" + std::string(text) + "\"" : "\"" + std::string(text.substr(0, kLimit)) + "...\"";
}

}  // namespace

absl::StatusOr<RewardKind> ParseRewardKind(std::string_view name) {
  if (name == "exact") return RewardKind::kExact;
  if (name == "numeric") return RewardKind::kNumeric;
  if (name == "math") return RewardKind::kMath;
  if (name == "multiple_choice") return RewardKind::kMultipleChoice;
  if (name == "service") return RewardKind::kService;
  return absl::InvalidArgumentError(
      absl::StrCat("reward is ", Quoted(name), ", must be exact, numeric, math, multiple_choice or service"));
}

absl::StatusOr<double> Score(RewardKind kind, std::string_view response, std::string_view answer) {
  const std::string_view wanted = Trim(answer);
  if (wanted.empty()) return absl::InvalidArgumentError("the problem's answer is empty");
  switch (kind) {
    case RewardKind::kExact:
      return Trim(response) == wanted ? 1.0 : 0.0;
    case RewardKind::kNumeric: {
      const auto expected = ParseNumber(wanted);
      if (!expected) {
        return absl::InvalidArgumentError(
            absl::StrCat("the problem's answer is ", Quoted(wanted), ", reward numeric needs a number"));
      }
      const auto given = LastNumber(response);
      return given && Equal(*given, *expected) ? 1.0 : 0.0;
    }
    case RewardKind::kMath: {
      // Data sets hold the bare answer or a whole solution with its box.
      const bool is_solution =
          wanted.find("\\boxed") != std::string_view::npos || wanted.find("####") != std::string_view::npos;
      const auto boxed = is_solution ? ExtractAnswer(wanted) : std::nullopt;
      const auto given = ExtractAnswer(response);
      return given && SameAnswer(*given, boxed ? std::string_view(*boxed) : wanted) ? 1.0 : 0.0;
    }
    case RewardKind::kMultipleChoice: {
      const auto expected = ExtractChoice(wanted);
      if (!expected) {
        return absl::InvalidArgumentError(
            absl::StrCat("the problem's answer is ", Quoted(wanted), ", reward multiple_choice needs a letter A to E"));
      }
      return ExtractChoice(response) == expected ? 1.0 : 0.0;
    }
    case RewardKind::kService:
      return absl::InvalidArgumentError("reward service is scored by its service, not here");
  }
  return absl::InternalError("unknown reward kind");
}

}  // namespace lockstep
