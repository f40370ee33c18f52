#include "client/memory_check.h"

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/child.h"

namespace lockstep {
namespace {

constexpr double kPlanSeconds = 60;
constexpr int kExitTooMuchMemory = 3;  // of the learner's --plan_only

// The first line of the file that begins with `prefix`, without it; empty when there is none.
std::string LineWith(const std::string& path, const std::string& prefix) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(prefix, 0) == 0) return line.substr(prefix.size());
  }
  return "";
}

}  // namespace

absl::StatusOr<std::string> MemoryPlanLine(const std::string& config_pbtxt, const std::string& mode,
                                           const std::string& log_path) {
  const absl::StatusOr<std::string> binary = FindBinary("lockstep_learner");
  if (!binary.ok()) return binary.status();
  std::error_code error;
  std::filesystem::remove(log_path, error);
  absl::StatusOr<Child> child =
      Child::Start("memory plan", *binary, {"--config=" + config_pbtxt, "--mode=" + mode, "--plan_only"}, log_path);
  if (!child.ok()) return child.status();
  const absl::Time deadline = absl::Now() + absl::Seconds(kPlanSeconds);
  while (!child->Poll().has_value()) {
    if (absl::Now() > deadline) {
      child->End(0);
      return absl::DeadlineExceededError(absl::StrCat("the memory plan was not made within ", kPlanSeconds, " s"));
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  if (*child->Poll() == 0) return LineWith(log_path, "");
  const std::string reason = LineWith(log_path, "error: ");
  const std::string line = reason.empty() ? child->Reason() : reason;
  return *child->Poll() == kExitTooMuchMemory ? absl::ResourceExhaustedError(line)
                                              : absl::FailedPreconditionError(line);
}

}  // namespace lockstep
