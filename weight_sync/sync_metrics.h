// The handles of the weight-sync metrics of one end (METRICS.md, 'Weight sync').
#ifndef LOCKSTEP_WEIGHT_SYNC_SYNC_METRICS_H_
#define LOCKSTEP_WEIGHT_SYNC_SYNC_METRICS_H_

#include "absl/status/status.h"
#include "engine/base/metrics.h"

namespace lockstep {

struct SyncMetrics {
  explicit SyncMetrics(MetricsRegistry& registry)
      : version(registry.Gauge("rl_weight_sync_version")),
        begin_seconds(registry.Histogram("rl_weight_sync_duration_seconds", {{"phase", "begin"}})),
        transfer_seconds(registry.Histogram("rl_weight_sync_duration_seconds", {{"phase", "transfer"}})),
        verify_seconds(registry.Histogram("rl_weight_sync_duration_seconds", {{"phase", "verify"}})),
        commit_seconds(registry.Histogram("rl_weight_sync_duration_seconds", {{"phase", "commit"}})),
        pause_seconds(registry.Histogram("rl_weight_sync_pause_duration_seconds")),
        bytes(registry.Counter("rl_weight_sync_bytes_total")),
        buckets(registry.Counter("rl_weight_sync_buckets_total")),
        digest_mismatches(registry.Counter("rl_weight_sync_digest_mismatches_total")),
        committed(registry.Counter("rl_weight_sync_updates_total", {{"outcome", "committed"}})),
        aborted(registry.Counter("rl_weight_sync_updates_total", {{"outcome", "aborted"}})),
        timeout(registry.Counter("rl_weight_sync_updates_total", {{"outcome", "timeout"}})),
        digest(registry.Counter("rl_weight_sync_updates_total", {{"outcome", "digest"}})),
        refused_epoch(registry.Counter("rl_weight_sync_updates_total", {{"outcome", "refused_epoch"}})) {}

  // One update is over.
  void CountOutcome(const absl::Status& status) const {
    if (status.ok()) {
      committed.Increment();
    } else if (absl::IsDeadlineExceeded(status)) {
      timeout.Increment();
    } else if (absl::IsDataLoss(status)) {
      digest.Increment();
    } else if (absl::IsFailedPrecondition(status)) {
      refused_epoch.Increment();
    } else {
      aborted.Increment();
    }
  }

  MetricGauge version;
  MetricHistogram begin_seconds, transfer_seconds, verify_seconds, commit_seconds, pause_seconds;
  MetricCounter bytes, buckets, digest_mismatches;
  MetricCounter committed, aborted, timeout, digest, refused_epoch;
};

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_SYNC_METRICS_H_
