// The metrics of all processes. Adding one: a line here, and its use in the component; deploy/ may then name it.
#include "engine/base/metrics.h"

namespace lockstep {
namespace {

constexpr MetricType kC = MetricType::kCounter;
constexpr MetricType kG = MetricType::kGauge;
constexpr MetricType kH = MetricType::kHistogram;
constexpr char kAll[] = "rollout,learner";
constexpr char kRollout[] = "rollout";
constexpr char kLearner[] = "learner";

const std::vector<double> kMilliseconds = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10};
const std::vector<double> kSeconds = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300};
const std::vector<double> kBatch = {1, 2, 4, 8, 16, 32, 64, 128, 256};
const std::vector<double> kTokens = {8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};

std::vector<MetricSpec> CommonMetrics() {
  return {
      {"rl_build_info",
       kG,
       kAll,
       "Always 1; version and wire protocol of this binary.",
       {{"version", {}}, {"protocol", {}}},
       {}},
      {"rl_component_state",
       kG,
       kAll,
       "State set of the process: exactly one of its states is 1.",
       {{"state", {"starting", "serving", "paused", "draining", "failed"}}},
       {}},
      {"rl_last_progress_timestamp_seconds", kG, kAll, "Unix time of the last decode or training step.", {}, {}},
      {"rl_log_messages_total", kC, kAll, "Log lines by level.", {{"level", {"info", "warning", "error"}}}, {}},
  };
}

std::vector<MetricSpec> RolloutMetrics() {
  return {
      {"rl_rollout_requests_total",
       kC,
       kRollout,
       "Samples that ended, by reason.",
       {{"reason", {"stop", "length", "cancelled", "rejected", "error", "nonfinite", "aborted_update"}}},
       {}},
      {"rl_rollout_requests_running", kG, kRollout, "Samples that are being decoded or prefilled.", {}, {}},
      {"rl_rollout_requests_waiting", kG, kRollout, "Samples admitted but not started.", {}, {}},
      {"rl_rollout_queue_capacity_requests", kG, kRollout, "Most samples that may wait.", {}, {}},
      {"rl_rollout_prompt_tokens_total", kC, kRollout, "Prompt tokens prefilled.", {}, {}},
      {"rl_rollout_generated_tokens_total", kC, kRollout, "Tokens sampled.", {}, {}},
      {"rl_rollout_batch_size", kH, kRollout, "Sequences in a decode step.", {}, kBatch},
      {"rl_rollout_decode_step_duration_seconds", kH, kRollout, "Time of one engine step.", {}, kMilliseconds},
      {"rl_rollout_time_to_first_token_seconds",
       kH,
       kRollout,
       "From a group's arrival to its first token.",
       {},
       kSeconds},
      {"rl_rollout_response_length_tokens", kH, kRollout, "Tokens of a finished response.", {}, kTokens},
      {"rl_rollout_kv_cache_blocks", kG, kRollout, "KV cache blocks of the server.", {}, {}},
      {"rl_rollout_kv_cache_blocks_used", kG, kRollout, "KV cache blocks in use.", {}, {}},
      {"rl_rollout_preemptions_total", kC, kRollout, "Samples whose KV cache was dropped, to be recomputed.", {}, {}},
      {"rl_rollout_stream_blocked_seconds_total",
       kC,
       kRollout,
       "Time that chunks waited for a stream's earlier write to finish.",
       {},
       {}},
      {"rl_rollout_nonfinite_logits_total", kC, kRollout, "Rows of logits with NaN or infinity.", {}, {}},
      {"rl_rollout_weight_version", kG, kRollout, "Weight version that samples the next token.", {}, {}},
  };
}

std::vector<MetricSpec> WeightSyncMetrics() {
  return {
      {"rl_weight_sync_version", kG, kAll, "Last committed weight version of this end.", {}, {}},
      {"rl_weight_sync_duration_seconds",
       kH,
       kAll,
       "Time of a weight update, by phase.",
       {{"phase", {"begin", "transfer", "verify", "commit"}}},
       kSeconds},
      {"rl_weight_sync_bytes_total", kC, kAll, "Weight bytes sent (learner) or received (rollout).", {}, {}},
      {"rl_weight_sync_updates_total",
       kC,
       kAll,
       "Weight updates, by outcome.",
       {{"outcome", {"committed", "aborted", "timeout", "digest", "refused_epoch"}}},
       {}},
      {"rl_weight_sync_buckets_total", kC, kAll, "Buckets sent or received.", {}, {}},
      {"rl_weight_sync_digest_mismatches_total", kC, kAll, "Buckets whose digest differed from the manifest.", {}, {}},
      {"rl_weight_sync_pause_duration_seconds",
       kH,
       kAll,
       "How long decoding stood still for the flip.",
       {},
       kMilliseconds},
  };
}

std::vector<MetricSpec> LearnerMetrics() {
  return {
      {"rl_learner_step", kG, kLearner, "Training steps done.", {}, {}},
      {"rl_learner_steps_total",
       kC,
       kLearner,
       "Training steps attempted by this process, by outcome.",
       {{"outcome", {"committed", "skipped_nonfinite", "skipped_empty", "aborted_peer"}}},
       {}},
      {"rl_learner_step_duration_seconds",
       kH,
       kLearner,
       "Time of a training step, by phase.",
       {{"phase", {"rollout", "score", "forward_backward", "reduce", "optimizer", "weight_sync", "checkpoint"}}},
       kSeconds},
      {"rl_learner_tokens_total", kC, kLearner, "Response tokens trained on.", {}, {}},
      {"rl_learner_trajectories_total",
       kC,
       kLearner,
       "Samples received, by what became of them.",
       {{"disposition", {"committed", "stale", "duplicate", "masked", "nonfinite", "invalid", "reward", "evicted"}}},
       {}},
      {"rl_learner_mismatch_kl_nats",
       kG,
       kLearner,
       "Mean of log mu - log pi over response tokens of the last step.",
       {},
       {}},
      {"rl_learner_logprob_abs_diff_max", kG, kLearner, "Largest absolute log mu - log pi of the last step.", {}, {}},
      {"rl_learner_is_weight_clipped_tokens_total",
       kC,
       kLearner,
       "Tokens whose importance weight met a bound.",
       {{"side", {"low", "high"}}},
       {}},
      {"rl_learner_masked_tokens_total",
       kC,
       kLearner,
       "Response tokens left out of the loss, by reason.",
       {{"reason", {"importance_weight", "stale", "nonfinite"}}},
       {}},
      {"rl_learner_effective_sample_size_ratio",
       kG,
       kLearner,
       "(sum w)^2 / (n sum w^2) of the importance weights of the last step.",
       {},
       {}},
      {"rl_learner_loss",
       kG,
       kLearner,
       "Loss of the last step, by term.",
       {{"term", {"policy", "kl", "entropy", "total"}}},
       {}},
      {"rl_learner_entropy_nats", kG, kLearner, "Mean entropy of pi over response tokens.", {}, {}},
      {"rl_learner_grad_norm", kG, kLearner, "Global gradient norm before clipping, unscaled.", {}, {}},
      {"rl_learner_loss_scale", kG, kLearner, "Scale of the loss in the backward pass.", {}, {}},
      {"rl_learner_nonfinite_gradients_total", kC, kLearner, "Gradients with NaN or infinity.", {}, {}},
      {"rl_learner_reward", kH, kLearner, "Reward of a sample.", {}, {-1, -0.5, 0, 0.25, 0.5, 0.75, 1}},
      {"rl_learner_reward_samples_total",
       kC,
       kLearner,
       "Samples sent to the reward service: scored, refused (no finite reward; dropped), failed (with their call; "
       "dropped).",
       {{"outcome", {"scored", "refused", "failed"}}},
       {}},
      {"rl_learner_reward_request_seconds",
       kH,
       kLearner,
       "Time of a request to the reward service, with its retries.",
       {},
       kSeconds},
      {"rl_learner_advantage_std", kG, kLearner, "Standard deviation of the advantages of the last step.", {}, {}},
      {"rl_learner_staleness_versions",
       kH,
       kLearner,
       "Weight versions between a sample's tokens and the learner.",
       {},
       {0, 1, 2, 4, 8, 16}},
      {"rl_learner_eval_step", kG, kLearner, "Training steps done at the last held-out evaluation.", {}, {}},
      {"rl_learner_eval_pass_ratio",
       kG,
       kLearner,
       "pass@k of the last held-out evaluation, for k = 1 and k = eval.n.",
       {{"k", {"one", "n"}}},
       {}},
      {"rl_learner_eval_majority_ratio", kG, kLearner, "maj@n of the last held-out evaluation.", {}, {}},
      {"rl_learner_eval_response_length_tokens",
       kG,
       kLearner,
       "Mean response length of the last held-out evaluation.",
       {},
       {}},
      {"rl_learner_eval_cut_by_length_ratio",
       kG,
       kLearner,
       "Fraction of samples of the last held-out evaluation that eval.max_tokens ended.",
       {},
       {}},
      {"rl_learner_eval_samples_total", kC, kLearner, "Samples of held-out evaluations.", {}, {}},
      {"rl_learner_eval_duration_seconds", kH, kLearner, "Time of a held-out evaluation.", {}, kSeconds},
      {"rl_learner_checkpoint_duration_seconds", kH, kLearner, "Time of writing a checkpoint.", {}, kSeconds},
      {"rl_learner_checkpoint_last_success_timestamp_seconds",
       kG,
       kLearner,
       "Unix time of the last good checkpoint.",
       {},
       {}},
      {"rl_learner_checkpoint_failures_total",
       kC,
       kLearner,
       "Checkpoints that could not be written, by reason.",
       {{"reason", {"disk_full", "io"}}},
       {}},
      {"rl_orchestrator_workers",
       kG,
       kLearner,
       "Worker processes, by role and state.",
       {{"role", {"rollout", "learner"}}, {"state", {"ready", "stale", "dead"}}},
       {}},
      {"rl_orchestrator_prompts_dispatched_total", kC, kLearner, "Groups sent to rollout servers.", {}, {}},
      {"rl_orchestrator_duplicates_total", kC, kLearner, "Chunks of an attempt that was superseded.", {}, {}},
      {"rl_orchestrator_retries_total",
       kC,
       kLearner,
       "Groups issued again, by reason.",
       {{"reason", {"timeout", "stream", "refused"}}},
       {}},
      {"rl_orchestrator_buffer_trajectories", kG, kLearner, "Finished samples that wait for a training step.", {}, {}},
      {"rl_orchestrator_generation_epoch",
       kG,
       kLearner,
       "Learner start number of the run's ledger: the fencing epoch.",
       {},
       {}},
  };
}

}  // namespace

const std::vector<MetricSpec>& MetricTable() {
  static const std::vector<MetricSpec>* table = [] {
    auto* all = new std::vector<MetricSpec>();
    for (auto& part : {CommonMetrics(), RolloutMetrics(), WeightSyncMetrics(), LearnerMetrics()}) {
      all->insert(all->end(), part.begin(), part.end());
    }
    return all;
  }();
  return *table;
}

}  // namespace lockstep
