// Prints the metrics table, for checks of dashboards and rules against it.
//   dump_metrics             series names, one a line (histograms: _bucket, _sum, _count), process_* included
//   dump_metrics --markdown  the table of docs/metrics.md
#include <cstdio>
#include <cstring>
#include <string>

#include "engine/base/metrics.h"

namespace {

using lockstep::MetricSpec;
using lockstep::MetricType;

const char* TypeName(MetricType type) {
  return type == MetricType::kCounter ? "counter" : type == MetricType::kGauge ? "gauge" : "histogram";
}

void PrintSeries() {
  for (const MetricSpec& spec : lockstep::MetricTable()) {
    if (spec.type != MetricType::kHistogram) {
      std::printf("%s\n", spec.name.c_str());
      continue;
    }
    for (const char* suffix : {"_bucket", "_sum", "_count"}) std::printf("%s%s\n", spec.name.c_str(), suffix);
  }
  for (const char* name : {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds",
                           "process_start_time_seconds"}) {
    std::printf("%s\n", name);
  }
}

void PrintMarkdown() {
  std::printf("| metric | type | components | labels | meaning |\n| --- | --- | --- | --- | --- |\n");
  for (const MetricSpec& spec : lockstep::MetricTable()) {
    std::string labels;
    for (const lockstep::MetricLabel& label : spec.labels) {
      labels += (labels.empty() ? "" : "; ") + label.name;
      for (size_t i = 0; i < label.values.size(); ++i) labels += (i == 0 ? ": " : ", ") + label.values[i];
    }
    std::printf("| %s | %s | %s | %s | %s |\n", spec.name.c_str(), TypeName(spec.type), spec.components.c_str(),
                labels.c_str(), spec.help.c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--markdown") == 0) {
    PrintMarkdown();
  } else {
    PrintSeries();
  }
  return 0;
}
