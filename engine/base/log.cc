#include "engine/base/log.h"

#include <atomic>
#include <cstdio>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace lockstep {
namespace {

std::string& LogName() {
  static std::string* name = new std::string("lockstep");
  return *name;
}

std::atomic<uint64_t> g_line_counts[3];

}  // namespace

void SetLogName(std::string_view process_name) { LogName() = std::string(process_name); }

void LogLine(LogLevel level, std::string_view message) {
  static constexpr char kLetters[] = {'I', 'W', 'E'};
  const int index = static_cast<int>(level);
  g_line_counts[index].fetch_add(1, std::memory_order_relaxed);
  std::string line = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ ", absl::Now(), absl::UTCTimeZone());
  line += kLetters[index];
  line += ' ';
  line += LogName();
  line += ": ";
  line += message;
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stderr);
}

uint64_t LogLineCount(LogLevel level) { return g_line_counts[static_cast<int>(level)].load(std::memory_order_relaxed); }

}  // namespace lockstep
