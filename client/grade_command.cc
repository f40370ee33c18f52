// grade: rewards for the responses of a JSONL file. The verifiers are the learner's: its program takes this process
// over.
#include "client/child.h"
#include "client/commands.h"

namespace lockstep {

int GradeCommand(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Arguments> split = SplitArguments(arguments, {"kind=", "out="});
  if (!split.ok()) return Fail(split.status(), 2);
  if (split->words.size() != 1) {
    return Usage("usage: lockstep grade FILE.jsonl [--kind=math] [--out=FILE]; a line has response and answer");
  }
  return Fail(BecomeProgram(
      "lockstep_grade", {"--kind=" + split->Get("kind", "math"), "--out=" + split->Get("out"), "--", split->words[0]}));
}

}  // namespace lockstep
