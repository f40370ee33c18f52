// Prometheus metrics of a process. Every name stands once, in MetricTable(): type, help, labels with their values and
// buckets. Code asks a MetricsRegistry for handles; a name or label that is not in the table is a bug of ours (CHECK).
//
//   MetricsRegistry metrics("rollout");
//   MetricCounter tokens = metrics.Counter("rl_rollout_generated_tokens_total");
//   MetricCounter stopped = metrics.Counter("rl_rollout_requests_total", {{"reason", "stop"}});
//   auto server = MetricsServer::Start(&metrics, "127.0.0.1", 0);
//
// Counters and histograms whose label values are all known exist at 0 from the start (an alert on increase() is blind
// to a counter that is born at 1). A gauge appears at its first Set, so no alert fires on a value nobody has set.
// All calls are safe from any thread; Increment and Set take no lock. Handles are valid while the registry lives.
#ifndef LOCKSTEP_ENGINE_BASE_METRICS_H_
#define LOCKSTEP_ENGINE_BASE_METRICS_H_

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace prometheus {
class Counter;
class Histogram;
}  // namespace prometheus

namespace lockstep {

// Of this build; also rl_build_info.
inline constexpr char kLockstepVersion[] = "0.1.0";

enum class MetricType { kCounter, kGauge, kHistogram };

struct MetricLabel {
  std::string name;
  std::vector<std::string> values;  // all that may occur; empty: any short value (at most 10 of them)
};

struct MetricSpec {
  std::string name;
  MetricType type;
  std::string components;  // "rollout", "learner", "rollout,learner"
  std::string help;
  std::vector<MetricLabel> labels;
  std::vector<double> buckets;  // histograms: upper bounds, ascending
};

// The contract with dashboards and rules. Names of the list in METRICS.md that a component of ours sets.
const std::vector<MetricSpec>& MetricTable();

using MetricLabels = std::map<std::string, std::string>;

class MetricCounter {
 public:
  void Increment(double by = 1) const;
  double value() const;

 private:
  friend class MetricsRegistry;
  explicit MetricCounter(prometheus::Counter* counter) : counter_(counter) {}
  prometheus::Counter* counter_;
};

struct GaugeSeries;

class MetricGauge {
 public:
  void Set(double value) const;
  void Increment(double by = 1) const;
  void Decrement(double by = 1) const { Increment(-by); }

 private:
  friend class MetricsRegistry;
  explicit MetricGauge(GaugeSeries* series) : series_(series) {}
  GaugeSeries* series_;
};

class MetricHistogram {
 public:
  void Observe(double value) const;

 private:
  friend class MetricsRegistry;
  explicit MetricHistogram(prometheus::Histogram* histogram) : histogram_(histogram) {}
  prometheus::Histogram* histogram_;
};

class MetricsRegistry {
 public:
  // component: "rollout" or "learner". The process's metrics of the table, rl_build_info, rl_log_messages_total and
  // process_* exist from here on.
  explicit MetricsRegistry(std::string_view component);
  ~MetricsRegistry();
  MetricsRegistry(const MetricsRegistry&) = delete;
  MetricsRegistry& operator=(const MetricsRegistry&) = delete;

  MetricCounter Counter(std::string_view name, const MetricLabels& labels = {});
  MetricGauge Gauge(std::string_view name, const MetricLabels& labels = {});
  MetricHistogram Histogram(std::string_view name, const MetricLabels& labels = {});

  // rl_component_state: "starting", "serving", "paused", "draining" or "failed"; "starting" at construction.
  void SetState(std::string_view state);
  // Sets rl_last_progress_timestamp_seconds to now. Called where work is really done: a decode step, a training step.
  void RecordProgress();

  // What /metrics answers, in the text exposition format.
  std::string Scrape() const;

 private:
  friend class MetricsServer;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Serves GET /metrics on its own port and threads.
class MetricsServer {
 public:
  // port 0 takes a free one. The registry must outlive the server. UNAVAILABLE when the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(MetricsRegistry* registry, std::string_view host,
                                                              int port);
  ~MetricsServer();
  int port() const { return port_; }
  // "host:port" with the bound port.
  const std::string& address() const { return address_; }

 private:
  struct Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
  int port_ = 0;
  std::string address_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_METRICS_H_
