#include "engine/base/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <set>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/process_collector.h"

namespace lockstep {

// A gauge that joins its family at the first Set.
struct GaugeSeries {
  prometheus::Family<prometheus::Gauge>* family;
  MetricLabels labels;
  std::atomic<prometheus::Gauge*> gauge{nullptr};

  prometheus::Gauge& Get() {
    prometheus::Gauge* current = gauge.load(std::memory_order_acquire);
    if (current == nullptr) {
      current = &family->Add(labels);  // returns the existing one when two threads meet here
      gauge.store(current, std::memory_order_release);
    }
    return *current;
  }
};

namespace {

constexpr char kProtocol[] = "lockstep.v1";
constexpr size_t kMaxOpenLabelValues = 10;

bool BelongsTo(const MetricSpec& spec, std::string_view component) {
  for (const std::string& part : std::vector<std::string>(absl::StrSplit(spec.components, ','))) {
    if (part == component) return true;
  }
  return false;
}

// All combinations of the known label values; empty if some label is open.
std::vector<MetricLabels> KnownSeries(const MetricSpec& spec) {
  std::vector<MetricLabels> series = {{}};
  for (const MetricLabel& label : spec.labels) {
    std::vector<MetricLabels> next;
    for (const MetricLabels& base : series) {
      for (const std::string& value : label.values) {
        next.push_back(base);
        next.back()[label.name] = value;
      }
    }
    series = std::move(next);
  }
  return series;
}

// Log lines are counted by the logger itself; this reads them at a scrape.
class LogCollector : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    prometheus::MetricFamily family;
    family.name = "rl_log_messages_total";
    family.help = "Log lines by level.";
    family.type = prometheus::MetricType::Counter;
    const std::pair<const char*, LogLevel> levels[] = {
        {"info", LogLevel::kInfo}, {"warning", LogLevel::kWarning}, {"error", LogLevel::kError}};
    for (const auto& [name, level] : levels) {
      prometheus::ClientMetric metric;
      metric.label.push_back({"level", name});
      metric.counter.value = static_cast<double>(LogLineCount(level));
      family.metric.push_back(metric);
    }
    return {family};
  }
};

}  // namespace

struct MetricsRegistry::Impl {
  std::string component;
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  std::shared_ptr<prometheus::Collectable> process = MakeProcessCollector();
  std::shared_ptr<prometheus::Collectable> log = std::make_shared<LogCollector>();
  std::mutex mutex;
  std::map<std::string, const MetricSpec*, std::less<>> specs;
  std::map<std::string, prometheus::Family<prometheus::Counter>*> counters;
  std::map<std::string, prometheus::Family<prometheus::Gauge>*> gauges;
  std::map<std::string, prometheus::Family<prometheus::Histogram>*> histograms;
  std::map<std::pair<std::string, MetricLabels>, std::unique_ptr<GaugeSeries>> gauge_series;
  std::map<std::pair<std::string, std::string>, std::set<std::string>> open_values;

  // The metric's entry, after checking that name, type and labels are those of the table. Holds no lock.
  const MetricSpec& Spec(std::string_view name, MetricType type, const MetricLabels& labels) {
    const auto it = specs.find(name);
    const std::string text(name);
    LOCKSTEP_CHECK(it != specs.end(), absl::StrCat("metric ", text, " is not in the table of a ", component).c_str());
    const MetricSpec& spec = *it->second;
    LOCKSTEP_CHECK(spec.type == type, absl::StrCat("metric ", text, " has another type").c_str());
    LOCKSTEP_CHECK(labels.size() == spec.labels.size(), absl::StrCat("metric ", text, " needs all its labels").c_str());
    for (const MetricLabel& label : spec.labels) CheckLabel(spec, label, labels);
    return spec;
  }

  void CheckLabel(const MetricSpec& spec, const MetricLabel& label, const MetricLabels& labels) {
    const auto it = labels.find(label.name);
    LOCKSTEP_CHECK(it != labels.end(), absl::StrCat("metric ", spec.name, " needs label ", label.name).c_str());
    bool known = false;
    for (const std::string& value : label.values) known = known || value == it->second;
    if (label.values.empty()) {
      std::lock_guard<std::mutex> lock(mutex);
      auto& values = open_values[{spec.name, label.name}];
      values.insert(it->second);
      known = values.size() <= kMaxOpenLabelValues;
    }
    LOCKSTEP_CHECK(
        known, absl::StrCat("metric ", spec.name, ": label ", label.name, "=", it->second, " is not one of its values")
                   .c_str());
  }

  void AddFamily(const MetricSpec& spec) {
    specs[spec.name] = &spec;
    switch (spec.type) {
      case MetricType::kCounter:
        counters[spec.name] = &prometheus::BuildCounter().Name(spec.name).Help(spec.help).Register(*registry);
        for (const MetricLabels& labels : KnownSeries(spec)) counters[spec.name]->Add(labels);
        break;
      case MetricType::kGauge:
        gauges[spec.name] = &prometheus::BuildGauge().Name(spec.name).Help(spec.help).Register(*registry);
        break;
      case MetricType::kHistogram:
        histograms[spec.name] = &prometheus::BuildHistogram().Name(spec.name).Help(spec.help).Register(*registry);
        for (const MetricLabels& labels : KnownSeries(spec)) histograms[spec.name]->Add(labels, spec.buckets);
        break;
    }
  }
};

MetricsRegistry::MetricsRegistry(std::string_view component) : impl_(std::make_unique<Impl>()) {
  impl_->component = std::string(component);
  for (const MetricSpec& spec : MetricTable()) {
    if (!BelongsTo(spec, component)) continue;
    if (spec.name == "rl_log_messages_total") continue;  // LogCollector
    impl_->AddFamily(spec);
  }
  LOCKSTEP_CHECK(impl_->specs.size() > 4, "a component without metrics");
  Gauge("rl_build_info", {{"version", kLockstepVersion}, {"protocol", kProtocol}}).Set(1);
  SetState("starting");
}

MetricsRegistry::~MetricsRegistry() = default;

MetricCounter MetricsRegistry::Counter(std::string_view name, const MetricLabels& labels) {
  const MetricSpec& spec = impl_->Spec(name, MetricType::kCounter, labels);
  return MetricCounter(&impl_->counters.at(spec.name)->Add(labels));
}

MetricGauge MetricsRegistry::Gauge(std::string_view name, const MetricLabels& labels) {
  const MetricSpec& spec = impl_->Spec(name, MetricType::kGauge, labels);
  std::lock_guard<std::mutex> lock(impl_->mutex);
  auto& series = impl_->gauge_series[{spec.name, labels}];
  if (series == nullptr) {
    series = std::make_unique<GaugeSeries>();
    series->family = impl_->gauges.at(spec.name);
    series->labels = labels;
  }
  return MetricGauge(series.get());
}

MetricHistogram MetricsRegistry::Histogram(std::string_view name, const MetricLabels& labels) {
  const MetricSpec& spec = impl_->Spec(name, MetricType::kHistogram, labels);
  return MetricHistogram(&impl_->histograms.at(spec.name)->Add(labels, spec.buckets));
}

void MetricsRegistry::SetState(std::string_view state) {
  const MetricSpec& spec = *impl_->specs.find("rl_component_state")->second;
  const MetricGauge current = Gauge("rl_component_state", {{"state", std::string(state)}});  // checks the value
  for (const std::string& value : spec.labels[0].values) {
    if (value != state) Gauge("rl_component_state", {{"state", value}}).Set(0);
  }
  current.Set(1);
}

void MetricsRegistry::RecordProgress() {
  Gauge("rl_last_progress_timestamp_seconds").Set(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
}

std::string MetricsRegistry::Scrape() const {
  std::ostringstream out;
  const prometheus::TextSerializer serializer;
  serializer.Serialize(out, impl_->registry->Collect());
  serializer.Serialize(out, impl_->log->Collect());
  serializer.Serialize(out, impl_->process->Collect());
  return out.str();
}

void MetricCounter::Increment(double by) const { counter_->Increment(by); }
double MetricCounter::value() const { return counter_->Value(); }
void MetricGauge::Set(double value) const { series_->Get().Set(value); }
void MetricGauge::Increment(double by) const { series_->Get().Increment(by); }
void MetricHistogram::Observe(double value) const { histogram_->Observe(value); }

struct MetricsServer::Impl {
  std::unique_ptr<prometheus::Exposer> exposer;
};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MetricsServer::~MetricsServer() = default;

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(MetricsRegistry* registry, std::string_view host,
                                                                    int port) {
  const std::string address = absl::StrCat(std::string(host), ":", port);
  auto impl = std::make_unique<Impl>();
  try {
    impl->exposer = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/2);
  } catch (const std::exception& error) {  // the library's only report of a port in use
    return absl::UnavailableError(absl::StrCat("metrics: cannot listen on ", address, " (", error.what(),
                                               "); is the port in use? set another --metrics_port"));
  }
  const std::vector<int> ports = impl->exposer->GetListeningPorts();
  if (ports.empty()) return absl::UnavailableError(absl::StrCat("metrics: cannot listen on ", address));
  impl->exposer->RegisterCollectable(registry->impl_->registry);
  impl->exposer->RegisterCollectable(registry->impl_->log);
  impl->exposer->RegisterCollectable(registry->impl_->process);
  auto server = std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl)));
  server->port_ = ports[0];
  server->address_ = absl::StrCat(std::string(host), ":", ports[0]);
  return server;
}

}  // namespace lockstep
