// The handles of the rollout server's metrics, fetched once.
#ifndef LOCKSTEP_ROLLOUT_SERVER_ROLLOUT_METRICS_H_
#define LOCKSTEP_ROLLOUT_SERVER_ROLLOUT_METRICS_H_

#include "engine/base/metrics.h"
#include "proto/rollout.pb.h"

namespace lockstep {

class RolloutMetrics {
 public:
  // The registry outlives this.
  explicit RolloutMetrics(MetricsRegistry* registry)
      : registry(registry),
        stop(registry->Counter("rl_rollout_requests_total", {{"reason", "stop"}})),
        length(registry->Counter("rl_rollout_requests_total", {{"reason", "length"}})),
        cancelled(registry->Counter("rl_rollout_requests_total", {{"reason", "cancelled"}})),
        rejected(registry->Counter("rl_rollout_requests_total", {{"reason", "rejected"}})),
        nonfinite(registry->Counter("rl_rollout_requests_total", {{"reason", "nonfinite"}})),
        requests_running(registry->Gauge("rl_rollout_requests_running")),
        requests_waiting(registry->Gauge("rl_rollout_requests_waiting")),
        queue_capacity(registry->Gauge("rl_rollout_queue_capacity_requests")),
        prompt_tokens(registry->Counter("rl_rollout_prompt_tokens_total")),
        generated_tokens(registry->Counter("rl_rollout_generated_tokens_total")),
        batch_size(registry->Histogram("rl_rollout_batch_size")),
        step_seconds(registry->Histogram("rl_rollout_decode_step_duration_seconds")),
        steps_ahead(registry->Counter("rl_rollout_steps_ahead_total")),
        time_to_first_token_seconds(registry->Histogram("rl_rollout_time_to_first_token_seconds")),
        response_length_tokens(registry->Histogram("rl_rollout_response_length_tokens")),
        kv_cache_blocks(registry->Gauge("rl_rollout_kv_cache_blocks")),
        kv_cache_blocks_used(registry->Gauge("rl_rollout_kv_cache_blocks_used")),
        preemptions(registry->Counter("rl_rollout_preemptions_total")),
        stream_blocked_seconds(registry->Counter("rl_rollout_stream_blocked_seconds_total")),
        nonfinite_logits(registry->Counter("rl_rollout_nonfinite_logits_total")),
        weight_version(registry->Gauge("rl_rollout_weight_version")) {}

  // The counter of samples that ended so.
  const MetricCounter& Finished(v1::FinishReason reason) const {
    switch (reason) {
      case v1::FINISH_REASON_STOP:
        return stop;
      case v1::FINISH_REASON_LENGTH:
        return length;
      case v1::FINISH_REASON_NONFINITE:
        return nonfinite;
      default:
        return cancelled;
    }
  }

  MetricsRegistry* registry;
  MetricCounter stop, length, cancelled, rejected, nonfinite;
  MetricGauge requests_running, requests_waiting, queue_capacity;
  MetricCounter prompt_tokens, generated_tokens;
  MetricHistogram batch_size, step_seconds;
  MetricCounter steps_ahead;
  MetricHistogram time_to_first_token_seconds, response_length_tokens;
  MetricGauge kv_cache_blocks, kv_cache_blocks_used;
  MetricCounter preemptions, stream_blocked_seconds, nonfinite_logits;
  MetricGauge weight_version;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_ROLLOUT_METRICS_H_
