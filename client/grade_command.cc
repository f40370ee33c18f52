// grade: rewards for the responses of a JSONL file. The verifiers are the learner's: its program takes this process
// over.
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "client/child.h"
#include "client/commands.h"

namespace lockstep {

int GradeCommand(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Arguments> split = SplitArguments(arguments, {"kind=", "out="});
  if (!split.ok()) return Fail(split.status(), 2);
  if (split->words.size() != 1) {
    return Usage("usage: lockstep grade FILE.jsonl [--kind=math] [--out=FILE]; a line has response and answer");
  }
  const absl::StatusOr<std::string> binary = FindBinary("lockstep_grade");
  if (!binary.ok()) return Fail(binary.status());
  std::vector<std::string> words = {*binary, "--kind=" + split->Get("kind", "math"), "--out=" + split->Get("out"), "--",
                                    split->words[0]};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execv(binary->c_str(), argv.data());
  return Fail(absl::UnavailableError(absl::StrCat("cannot start ", *binary, ": ", std::strerror(errno))));
}

}  // namespace lockstep
