#include "learner/verifier/multiple_choice.h"

#include <optional>
#include <string>

#include "learner/verifier/math_answer.h"

namespace lockstep {
namespace {

constexpr std::string_view kSpace = " \t\r\n";

std::string_view Trim(std::string_view text, std::string_view characters) {
  const size_t begin = text.find_first_not_of(characters);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(characters) - begin + 1);
}

}  // namespace

std::optional<char> ParseChoice(std::string_view text) {
  text = Trim(text, kSpace);
  for (bool changed = true; changed;) {
    changed = false;
    for (const std::string_view prefix :
         {"\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{", "\\mbox{", "\\textrm{", "option ", "Option ", "choice ",
          "Choice ", "\\left", "$", "*", "{", "(", "[", "\\(", " "}) {
      if (text.substr(0, prefix.size()) != prefix) continue;
      text.remove_prefix(prefix.size());
      changed = true;
      break;
    }
  }
  if (text.empty()) return std::nullopt;
  const char letter = text[0];
  const bool upper = letter >= 'A' && letter <= 'E';
  if (!upper && !(letter >= 'a' && letter <= 'e')) return std::nullopt;
  const char choice = upper ? letter : static_cast<char>(letter - 32);
  const std::string_view rest = text.substr(1);
  if (rest.find_first_not_of(" \t\r\n.)]}$*\\,:;") == std::string_view::npos) return choice;
  // "B) 12", "B. because", "B: 3"; "B and C" and "a line" are none.
  const std::string_view closers = ".):,]}\\";
  return closers.find(rest[0]) != std::string_view::npos && !(rest[0] == ',' && ParseChoice(rest.substr(1)))
             ? std::optional(choice)
             : std::nullopt;
}

std::optional<char> ExtractChoice(std::string_view response) {
  if (const auto stated = ExtractAnswer(response)) return ParseChoice(*stated);
  const std::string_view text = Trim(response, kSpace);
  const size_t line = text.rfind('\n');
  return ParseChoice(line == std::string_view::npos ? text : text.substr(line + 1));
}

}  // namespace lockstep
