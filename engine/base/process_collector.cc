#include "engine/base/process_collector.h"

#include <dirent.h>
#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace lockstep {
namespace {

std::string ReadSmall(const char* path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Second field of /proc/self/statm: resident pages.
double ResidentBytes() {
  std::istringstream in(ReadSmall("/proc/self/statm"));
  double total = 0, resident = 0;
  in >> total >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

double OpenFds() {
  DIR* directory = opendir("/proc/self/fd");
  if (directory == nullptr) return 0;
  int count = 0;
  while (const dirent* entry = readdir(directory)) count += entry->d_name[0] != '.';
  closedir(directory);
  return count - 1;  // without the one that reads the directory
}

// Boot time plus field 22 of /proc/self/stat (clock ticks since boot). The command in field 2 may hold spaces, so
// fields are counted from the last ')'.
double StartTimeSeconds() {
  const std::string stat = ReadSmall("/proc/self/stat");
  const size_t end = stat.rfind(')');
  const std::string boot = ReadSmall("/proc/stat");
  const size_t btime = boot.find("\nbtime ");
  if (end == std::string::npos || btime == std::string::npos) return 0;
  std::istringstream fields(stat.substr(end + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  return std::strtod(boot.c_str() + btime + 7, nullptr) +
         std::strtod(field.c_str(), nullptr) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

prometheus::MetricFamily Family(const char* name, const char* help, prometheus::MetricType type, double value) {
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  prometheus::ClientMetric metric;
  if (type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family.metric.push_back(metric);
  return family;
}

class ProcessCollector : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    using prometheus::MetricType;
    return {
        Family("process_cpu_seconds_total", "User and system CPU time.", MetricType::Counter, CpuSeconds()),
        Family("process_resident_memory_bytes", "Resident memory.", MetricType::Gauge, ResidentBytes()),
        Family("process_open_fds", "Open file descriptors.", MetricType::Gauge, OpenFds()),
        Family("process_start_time_seconds", "Unix time of the process's start.", MetricType::Gauge,
               start_time_seconds_),
    };
  }

 private:
  const double start_time_seconds_ = StartTimeSeconds();
};

}  // namespace

std::shared_ptr<prometheus::Collectable> MakeProcessCollector() { return std::make_shared<ProcessCollector>(); }

}  // namespace lockstep
