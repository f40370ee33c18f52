// tokenize: texts to token ids by a model folder's tokenizer. The work is lockstep_tokenize's, which takes this
// process's place: the client itself links no engine.
#include <unistd.h>

#include <cerrno>
#include <cstring>

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
  const absl::StatusOr<std::string> binary = FindBinary("lockstep_tokenize");
  if (!binary.ok()) return Fail(binary.status());
  std::vector<std::string> words = {*binary};
  for (const auto& [name, value] : split->flags) {
    words.push_back(name == "model" ? absl::StrCat("--model=", value) : absl::StrCat("--", name));
  }
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execv(binary->c_str(), argv.data());
  return Fail(absl::UnavailableError(absl::StrCat("cannot execute ", *binary, ": ", std::strerror(errno))));
}

}  // namespace lockstep
