// The commands of `lockstep`, one function each. A command gets its arguments without its own name and returns the exit
// code: 0 done, 1 it failed, 2 it was called wrongly; of commands that own services, 75 or 69 where a GPU failed
// (docs/cuda.md). Errors are one line on stderr.
#ifndef LOCKSTEP_CLIENT_COMMANDS_H_
#define LOCKSTEP_CLIENT_COMMANDS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lockstep {

struct Arguments {
  std::vector<std::string> words;  // not beginning with --
  std::vector<std::pair<std::string, std::string>>
      flags;  // --name=value or --name value, or --name with an empty value
  // The value of a flag, or `otherwise`; has tells whether it was given.
  std::string Get(const std::string& name, const std::string& otherwise = "") const;
  bool Has(const std::string& name) const;
};

// Splits arguments; a flag not in `known` ("name" or "name=" for one that takes a value) is an error. A value follows
// the flag's "=", or is the next argument, which then does not begin with "--".
absl::StatusOr<Arguments> SplitArguments(const std::vector<std::string>& arguments,
                                         const std::vector<std::string>& known);

// Prints "lockstep: message" and returns `code`.
int Fail(const absl::Status& status, int code = 1);
int Usage(const std::string& line);

// RUN is a run folder (its learner.address is read) or host:port.
absl::StatusOr<std::string> LearnerAddress(const std::string& run);

int RunCommand(const std::vector<std::string>& arguments);         // run CONFIG [key=value ...] [--resume] [--detach]
int PretrainCommand(const std::vector<std::string>& arguments);    // pretrain CONFIG [key=value ...]
int FilterCommand(const std::vector<std::string>& arguments);      // filter CONFIG [key=value ...] --out=FILE
int EvalCommand(const std::vector<std::string>& arguments);        // eval CONFIG, or eval --model=DIR --data=FILE
int ScoreCommand(const std::vector<std::string>& arguments);       // score --model=DIR FILE.jsonl
int MismatchCommand(const std::vector<std::string>& arguments);    // mismatch --model=DIR --prompts=FILE.jsonl
int MakeModelCommand(const std::vector<std::string>& arguments);   // make-model --shape=NAME OUT_DIR
int StatusCommand(const std::vector<std::string>& arguments);      // status RUN
int WatchCommand(const std::vector<std::string>& arguments);       // watch RUN
int PauseCommand(const std::vector<std::string>& arguments);       // pause RUN
int ResumeCommand(const std::vector<std::string>& arguments);      // resume RUN
int StopCommand(const std::vector<std::string>& arguments);        // stop RUN
int CheckpointCommand(const std::vector<std::string>& arguments);  // checkpoint RUN
int GenerateCommand(const std::vector<std::string>& arguments);    // generate --model=DIR PROMPT
int TokenizeCommand(const std::vector<std::string>& arguments);    // tokenize --model=DIR [flags] < TEXTS
int GradeCommand(const std::vector<std::string>& arguments);       // grade FILE.jsonl
int SummaryCommand(const std::vector<std::string>& arguments);     // summary RUN
int ReportCommand(const std::vector<std::string>& arguments);      // report RUN... --out=FILE.html
int DoctorCommand(const std::vector<std::string>& arguments);      // doctor

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_COMMANDS_H_
