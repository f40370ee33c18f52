// Log lines to stderr: time (UTC), level, process name, message; one write a line, so lines of threads do not mix.
#ifndef LOCKSTEP_ENGINE_BASE_LOG_H_
#define LOCKSTEP_ENGINE_BASE_LOG_H_

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace lockstep {

enum class LogLevel { kInfo, kWarning, kError };

void SetLogName(std::string_view process_name);
void LogLine(LogLevel level, std::string_view message);
// Lines logged so far at a level, for the metric rl_log_messages_total.
uint64_t LogLineCount(LogLevel level);

template <typename... Args>
void LogInfo(const Args&... args) {
  LogLine(LogLevel::kInfo, absl::StrCat(args...));
}
template <typename... Args>
void LogWarning(const Args&... args) {
  LogLine(LogLevel::kWarning, absl::StrCat(args...));
}
template <typename... Args>
void LogError(const Args&... args) {
  LogLine(LogLevel::kError, absl::StrCat(args...));
}

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_LOG_H_
