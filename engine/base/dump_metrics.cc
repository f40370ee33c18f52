// Prints the names of the metrics table, one a line, with their series (histograms: _bucket, _sum, _count), for checks
// of dashboards and rules against it. With --spec: name, type, components and labels in columns.
#include <cstdio>
#include <cstring>

#include "engine/base/metrics.h"

int main(int argc, char** argv) {
  const bool spec_wanted = argc > 1 && std::strcmp(argv[1], "--spec") == 0;
  for (const lockstep::MetricSpec& spec : lockstep::MetricTable()) {
    if (spec_wanted) {
      static constexpr const char* kTypes[] = {"counter", "gauge", "histogram"};
      std::printf("%s\t%s\t%s\t", spec.name.c_str(), kTypes[static_cast<int>(spec.type)], spec.components.c_str());
      for (const lockstep::MetricLabel& label : spec.labels) std::printf("%s ", label.name.c_str());
      std::printf("\t%s\n", spec.help.c_str());
      continue;
    }
    if (spec.type != lockstep::MetricType::kHistogram) {
      std::printf("%s\n", spec.name.c_str());
      continue;
    }
    for (const char* suffix : {"_bucket", "_sum", "_count"}) std::printf("%s%s\n", spec.name.c_str(), suffix);
  }
  if (!spec_wanted) {
    for (const char* name : {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds",
                             "process_start_time_seconds"}) {
      std::printf("%s\n", name);
    }
  }
  return 0;
}
