// lockstep_grade: rewards for the responses of a JSONL file, by a built-in verifier. `lockstep grade` starts it.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/time/clock.h"
#include "learner/grade.h"

ABSL_FLAG(std::string, kind, "math", "exact, numeric, math or multiple_choice; a line's reward_kind goes before it");
ABSL_FLAG(std::string, out, "", "file to write; empty: the file that is read");

namespace lockstep {
namespace {

int PrintError(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return exit_code;
}

int Main(const std::vector<char*>& words) {
  if (words.size() != 2) return PrintError(absl::InvalidArgumentError("name one JSONL file"), 2);
  const auto kind = ParseRewardKind(absl::GetFlag(FLAGS_kind));
  if (!kind.ok()) return PrintError(kind.status(), 2);
  const std::string path = words[1];
  const std::string out = absl::GetFlag(FLAGS_out).empty() ? path : absl::GetFlag(FLAGS_out);
  const absl::Time start = absl::Now();
  const auto summary = GradeFile(path, out, *kind);
  if (!summary.ok()) return PrintError(summary.status(), 1);
  const double lines = static_cast<double>(summary->lines);
  std::printf("graded %llu lines: %llu right, mean reward %.4f, %.2f s -> %s\n",
              static_cast<unsigned long long>(summary->lines), static_cast<unsigned long long>(summary->right),
              summary->reward_sum / lines, absl::ToDoubleSeconds(absl::Now() - start), out.c_str());
  return 0;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("lockstep_grade [--kind=math] [--out=FILE] FILE.jsonl");
  return lockstep::Main(absl::ParseCommandLine(argc, argv));
}
