// doctor: what this machine has, what is missing, and what to do about it; with a config, whether its run fits.
#include <google/protobuf/text_format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/child.h"
#include "client/commands.h"
#include "client/config.h"
#include "client/memory_check.h"
#include "client/path_search.h"
#include "client/temporary_folder.h"

namespace lockstep {
namespace {

class Report {
 public:
  void Good(const std::string& what, const std::string& found) { Line("ok     ", what, found); }
  void Missing(const std::string& what, const std::string& way_out) {
    Line("MISSING", what, way_out);
    ++missing_;
  }
  void Note(const std::string& what, const std::string& found) { Line("note   ", what, found); }
  int missing() const { return missing_; }

 private:
  static void Line(const char* mark, const std::string& what, const std::string& text) {
    std::printf("%s  %-22s %s\n", mark, what.c_str(), text.c_str());
  }
  int missing_ = 0;
};

void CheckProcessor(Report& report) {
  const bool usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (usable) {
    report.Good("processor", absl::StrCat(std::thread::hardware_concurrency(), " cores with AVX2, FMA and F16C"));
  } else {
    report.Missing("processor", "AVX2, FMA and F16C are needed by the CPU engine; use an x86-64-v3 machine");
  }
}

// A field of /proc/meminfo in GiB; 0 when it is not there.
double MemoryGiB(const std::string& field) {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    double kib = 0;
    if (words >> name >> kib && name == field + ":") return kib / (1 << 20);
  }
  return 0;
}

void CheckMemoryAndDisk(Report& report) {
  report.Good("memory",
              absl::StrFormat("%.1f GiB, %.1f GiB available", MemoryGiB("MemTotal"), MemoryGiB("MemAvailable")));
  struct statvfs disk;
  if (statvfs(".", &disk) == 0) {
    const double free = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize) / (1 << 30);
    if (free < 5) {
      report.Missing("disk", absl::StrFormat("%.1f GiB free here; a build and a small run need 5 GiB", free));
    } else {
      report.Good("disk", absl::StrFormat("%.1f GiB free here", free));
    }
  }
}

void CheckPrograms(Report& report) {
  for (const char* name : {"lockstep_rollout_server", "lockstep_learner", "lockstep_tokenize", "lockstep_score",
                           "lockstep_grade", "lockstep_make_model", "lockstep_mismatch"}) {
    const absl::StatusOr<std::string> path = FindBinary(name);
    if (path.ok()) {
      report.Good(name, *path);
    } else {
      report.Missing(name, "bazel build //... makes it; or set LOCKSTEP_BIN_DIR to its folder");
    }
  }
  const auto optional = [&report](const std::string& name, const std::string& way_out) {
    if (FindOnPath(name).has_value()) {
      report.Good(name, "found");
    } else {
      report.Note(name, way_out);
    }
  };
  optional("prometheus", "not installed; dashboards and alerts need one (apt-get install prometheus)");
  optional("gnuplot",
           "not installed; `lockstep report` and `lockstep mismatch` draw with it (apt-get install gnuplot-nox)");
}

// The driver's version out of its own line: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul ...".
std::string DriverVersion(const std::string& line) {
  std::istringstream words(line);
  for (std::string word; words >> word;) {
    const bool number = word.find_first_not_of("0123456789.") == std::string::npos;
    if (number && word.find('.') != std::string::npos) return word;
  }
  return "of an unknown version";
}

// Whether the build has CUDA and what the GPUs are is the learner's to know: a config with `device: cuda` asks it.
void CheckGpu(Report& report) {
  std::ifstream version("/proc/driver/nvidia/version");
  std::string line;
  if (std::getline(version, line)) {
    report.Note("GPU", absl::StrCat("NVIDIA driver ", DriverVersion(line), "; runs with `device: cuda` use it"));
  } else {
    report.Note("GPU", "no NVIDIA driver; everything runs on the CPU, and `device: cuda` is refused");
  }
}

void CheckLoopback(Report& report) {
  std::ifstream state("/sys/class/net/lo/flags");
  std::string flags;
  state >> flags;
  if (!flags.empty() && (std::stoul(flags, nullptr, 16) & 1u) != 0) {
    report.Good("loopback", "up");
  } else {
    report.Missing("loopback", "the services talk over 127.0.0.1; bring it up (ip link set lo up)");
  }
}

// Whether the run of a config will fit this machine's memory.
absl::Status CheckRun(const std::string& path, const std::vector<std::string>& overrides, Report& report) {
  const absl::StatusOr<v1::RunConfig> config = LoadRunConfig(path, overrides);
  if (!config.ok()) return config.status();
  if (absl::Status status = CheckRunFiles(*config, true); !status.ok()) return status;
  const TemporaryFolder folder;
  std::string text;
  google::protobuf::TextFormat::PrintToString(*config, &text);
  std::ofstream(folder.path() + "/config.pbtxt") << text;
  const absl::StatusOr<std::string> plan =
      MemoryPlanLine(folder.path() + "/config.pbtxt", "rl", folder.path() + "/plan.log");
  if (plan.ok()) {
    report.Good(path, *plan);
  } else {
    report.Missing(path, std::string(plan.status().message()));
  }
  return absl::OkStatus();
}

}  // namespace

int DoctorCommand(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Arguments> split = SplitArguments(arguments, {});
  if (!split.ok()) return Fail(split.status(), 2);
  Report report;
  CheckProcessor(report);
  CheckMemoryAndDisk(report);
  CheckPrograms(report);
  CheckLoopback(report);
  CheckGpu(report);
  if (!split->words.empty()) {
    const std::vector<std::string> overrides(split->words.begin() + 1, split->words.end());
    if (absl::Status status = CheckRun(split->words[0], overrides, report); !status.ok()) return Fail(status, 2);
  }
  if (report.missing() == 0) {
    std::printf("nothing is missing\n");
    return 0;
  }
  std::printf("%d missing\n", report.missing());
  return 1;
}

}  // namespace lockstep
