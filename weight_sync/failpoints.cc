#include "weight_sync/failpoints.h"

#include <atomic>
#include <cstdlib>
#include <map>
#include <utility>
#include <vector>

#include "absl/base/const_init.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"

namespace lockstep {
namespace {

struct Failpoint {
  uint64_t at = 0;  // hit at which it fires, from 1; 0: at every hit
  uint64_t hits = 0;
  uint64_t fired = 0;
};

struct Table {
  Mutex mutex;
  std::map<std::string, Failpoint> points ABSL_GUARDED_BY(mutex);
};

enum Mode : int { kUnread, kOff, kOn };
std::atomic<int> mode{kUnread};

Table& GetTable() {
  static Table* const table = new Table;
  return *table;
}

}  // namespace

absl::Status SetFailpoints(const std::string& specification) {
  std::map<std::string, Failpoint> points;
  const std::vector<std::string> items = absl::StrSplit(specification, ',', absl::SkipEmpty());
  for (const std::string& item : items) {
    const std::vector<std::string> parts = absl::StrSplit(item, ':');
    Failpoint point;
    if (parts.size() != 2 || parts[0].empty() || !absl::SimpleAtoi(parts[1], &point.at)) {
      return absl::InvalidArgumentError(absl::StrCat("failpoint \"", item, "\" is not NAME:HIT"));
    }
    points[parts[0]] = point;
  }
  Table& table = GetTable();
  MutexLock lock(&table.mutex);
  mode.store(points.empty() ? kOff : kOn, std::memory_order_release);
  table.points = std::move(points);
  return absl::OkStatus();
}

bool FailpointFires(const char* name) {
  int current = mode.load(std::memory_order_acquire);
  if (current == kUnread) {
    const char* environment = std::getenv("LOCKSTEP_FAILPOINTS");
    const absl::Status status = SetFailpoints(environment == nullptr ? "" : environment);
    if (!status.ok()) {
      LogError("LOCKSTEP_FAILPOINTS ignored: ", status.message());
      (void)SetFailpoints("");
    }
    current = mode.load(std::memory_order_acquire);
  }
  if (current == kOff) return false;
  Table& table = GetTable();
  MutexLock lock(&table.mutex);
  const auto found = table.points.find(name);
  if (found == table.points.end()) return false;
  Failpoint& point = found->second;
  ++point.hits;
  if (point.at != 0 && point.hits != point.at) return false;
  ++point.fired;
  return true;
}

uint64_t FailpointFired(const std::string& name) {
  Table& table = GetTable();
  MutexLock lock(&table.mutex);
  const auto found = table.points.find(name);
  return found == table.points.end() ? 0 : found->second.fired;
}

}  // namespace lockstep
