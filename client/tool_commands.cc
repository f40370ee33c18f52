// score, make-model: commands whose work is a program of its own beside this one. Its flags are checked here, then it
// takes this process's place, with its standard input and output.
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/child.h"
#include "client/commands.h"

namespace lockstep {
namespace {

int RunProgram(const std::string& program, const std::string& usage, const std::vector<std::string>& flags,
               const std::vector<std::string>& arguments) {
  const absl::StatusOr<Arguments> split = SplitArguments(arguments, flags);
  if (!split.ok()) return Fail(split.status(), 2);
  if (split->words.size() != 1) return Usage("usage: lockstep " + usage);
  for (const auto& [flag, value] : split->flags) {
    for (const std::string& known : flags) {
      if (known == flag + "=" && value.empty()) return Usage(absl::StrCat("--", flag, " needs a value"));
    }
  }
  std::vector<std::string> words;
  for (const auto& [flag, value] : split->flags) {
    words.push_back(value.empty() ? absl::StrCat("--", flag) : absl::StrCat("--", flag, "=", value));
  }
  words.push_back("--");
  words.push_back(split->words[0]);
  return Fail(BecomeProgram(program, std::move(words)));
}

}  // namespace

int ScoreCommand(const std::vector<std::string>& arguments) {
  return RunProgram(
      "lockstep_score", "score --model=DIR [--engine=learner|rollout] [--dtype=fp16] FILE.jsonl",
      {"model=", "engine=", "dtype=", "numerics=", "temperature=", "threads=", "chunk=", "prefill", "out="}, arguments);
}

int MakeModelCommand(const std::vector<std::string>& arguments) {
  return RunProgram("lockstep_make_model", "make-model --shape=NAME|CONFIG.json [--dtype=fp16] [--seed=1] OUT_DIR",
                    {"shape=", "dtype=", "seed=", "std=", "tokenizer="}, arguments);
}

}  // namespace lockstep
