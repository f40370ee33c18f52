// Writes the quickstart's data and tokenizer.
//   make_arithmetic --count=2000 --seed=1 --min_digits=2 --max_digits=4 --out_sft=sft.jsonl --out_rl=rl.jsonl
//                   --tokenizer_dir=DIR
//   make_arithmetic --task=recurrence --count=2000 --seed=1 --min_terms=28 --max_terms=46 ...
#include <sys/stat.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/base/process.h"
#include "engine/tokenizer/arithmetic.h"
#include "learner/tasks/arithmetic.h"
#include "learner/tasks/recurrence.h"

ABSL_FLAG(std::string, task, "addition", "addition, or recurrence (learner/tasks/recurrence.h)");
ABSL_FLAG(int64_t, count, 1000, "problems to make");
ABSL_FLAG(uint64_t, seed, 0, "seed; equal seeds give equal files");
ABSL_FLAG(int, min_digits, 2, "fewest digits of an operand");
ABSL_FLAG(int, max_digits, 4, "most digits of an operand");
ABSL_FLAG(int, min_terms, 28, "recurrence: fewest terms");
ABSL_FLAG(int, max_terms, 46, "recurrence: most terms");
ABSL_FLAG(std::string, out_sft, "", "JSONL with prompt, response and answer; empty: none");
ABSL_FLAG(std::string, out_rl, "", "JSONL with prompt and answer; empty: none");
ABSL_FLAG(std::string, tokenizer_dir, "", "folder that gets tokenizer.json and tokenizer_config.json; empty: none");

namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 2;
}

absl::StatusOr<std::vector<lockstep::ArithmeticProblem>> MakeProblems() {
  const std::string task = absl::GetFlag(FLAGS_task);
  if (task == "addition") {
    return lockstep::MakeArithmeticProblems({.count = absl::GetFlag(FLAGS_count),
                                             .seed = absl::GetFlag(FLAGS_seed),
                                             .min_digits = absl::GetFlag(FLAGS_min_digits),
                                             .max_digits = absl::GetFlag(FLAGS_max_digits)});
  }
  if (task == "recurrence") {
    return lockstep::MakeRecurrenceProblems({.count = absl::GetFlag(FLAGS_count),
                                             .seed = absl::GetFlag(FLAGS_seed),
                                             .min_terms = absl::GetFlag(FLAGS_min_terms),
                                             .max_terms = absl::GetFlag(FLAGS_max_terms)});
  }
  return absl::InvalidArgumentError(absl::StrCat("--task is '", task, "', must be addition or recurrence"));
}

}  // namespace

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("writes generated arithmetic with written-out steps as JSONL, and their tokenizer");
  absl::ParseCommandLine(argc, argv);
  const auto problems = MakeProblems();
  if (!problems.ok()) return Fail(problems.status());
  if (const std::string path = absl::GetFlag(FLAGS_out_sft); !path.empty()) {
    const absl::Status status = lockstep::WriteFileAtomically(path, lockstep::SftJsonl(*problems));
    if (!status.ok()) return Fail(status);
  }
  if (const std::string path = absl::GetFlag(FLAGS_out_rl); !path.empty()) {
    const absl::Status status = lockstep::WriteFileAtomically(path, lockstep::RlJsonl(*problems));
    if (!status.ok()) return Fail(status);
  }
  if (const std::string dir = absl::GetFlag(FLAGS_tokenizer_dir); !dir.empty()) {
    if (mkdir(dir.c_str(), 0755) != 0 && errno != EEXIST)
      return Fail(lockstep::ErrnoStatus(errno, "cannot create", dir));
    const absl::Status status = lockstep::MakeArithmeticTokenizer(dir);
    if (!status.ok()) return Fail(status);
  }
  return 0;
}
