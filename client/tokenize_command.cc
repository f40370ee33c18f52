// tokenize: texts to token ids by a model folder's tokenizer. The work is lockstep_tokenize's, which takes this
// process's place: the client itself links no engine.
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/child.h"
#include "client/commands.h"

namespace lockstep {

int TokenizeCommand(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Arguments> split = SplitArguments(
      arguments,
      {"model=", "add-special-tokens", "no-add-special-tokens", "decode", "skip-special-tokens", "json", "chat"});
  if (!split.ok()) return Fail(split.status(), 2);
  if (!split->words.empty()) return Usage("tokenize reads its texts from stdin, one a line");
  if (split->Get("model").empty()) return Usage("usage: lockstep tokenize --model=DIR [flags] < TEXTS");
  if (split->Has("add-special-tokens") && split->Has("no-add-special-tokens")) {
    return Usage("--add-special-tokens and --no-add-special-tokens contradict one another");
  }
  std::vector<std::string> flags;
  for (const auto& [name, value] : split->flags) {
    flags.push_back(name == "model" ? absl::StrCat("--model=", value) : absl::StrCat("--", name));
  }
  return Fail(BecomeProgram("lockstep_tokenize", std::move(flags)));
}

}  // namespace lockstep
