// The process_* metrics that Prometheus users expect of every process; prometheus-cpp 1.0 has no collector for them.
#ifndef LOCKSTEP_ENGINE_BASE_PROCESS_COLLECTOR_H_
#define LOCKSTEP_ENGINE_BASE_PROCESS_COLLECTOR_H_

#include <memory>

namespace prometheus {
class Collectable;
}  // namespace prometheus

namespace lockstep {

// process_cpu_seconds_total, process_resident_memory_bytes, process_open_fds, process_start_time_seconds, read from
// /proc at each scrape.
std::shared_ptr<prometheus::Collectable> MakeProcessCollector();

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_PROCESS_COLLECTOR_H_
