#include "learner/step_figures.h"

#include <algorithm>

namespace lockstep {
namespace {

void FillMismatch(const MismatchReport& report, v1::StepSummary* summary) {
  summary->set_kl_k1(report.kl_k1);
  summary->set_kl_k2(report.kl_k2);
  summary->set_kl_k3(report.kl_k3);
  summary->set_mean_abs_log_ratio(report.mean_abs_log_ratio);
  summary->set_max_abs_log_ratio(report.max_abs_log_ratio);
  summary->set_max_probability_difference(report.max_probability_difference);
  summary->set_min_probability_difference(report.min_probability_difference);
  summary->set_ratio_outside_fraction(report.ratio_outside);
  summary->set_probability_correlation(report.probability_correlation);
  summary->set_rollout_perplexity(report.rollout_perplexity);
  summary->set_training_perplexity(report.training_perplexity);
  summary->set_perplexity_ratio(report.perplexity_ratio);
  summary->set_sequence_log_ratio_mean(report.sequence_log_ratio_mean);
  summary->set_sequence_log_ratio_min(report.sequence_log_ratio_min);
  summary->set_sequence_log_ratio_max(report.sequence_log_ratio_max);
  summary->set_sequence_log_ratio_slope(report.sequence_log_ratio_slope);
  summary->set_effective_sample_size_token(report.effective_sample_size_token);
  summary->set_effective_sample_size_sequence(report.effective_sample_size_sequence);
  summary->set_chi_square_token(report.chi_square_token);
  summary->set_chi_square_sequence(report.chi_square_sequence);
}

}  // namespace

void FillStepFigures(const TrainMetrics& metrics, v1::StepSummary* summary) {
  FillMismatch(metrics.mismatch.Report(), summary);
  const ObjectiveStats& objective = metrics.objective;
  const double tokens = std::max(1.0, objective.tokens);
  summary->set_entropy(metrics.entropy_sum / tokens);
  summary->set_loss((objective.loss + objective.kl_loss) / metrics.updates);
  summary->set_kl_loss(objective.kl_loss / metrics.updates);
  summary->set_reference_kl(objective.kl_sum / tokens);
  summary->set_grad_norm(metrics.grad_norm);
  summary->set_loss_scale(metrics.loss_scale);
  summary->set_skipped(metrics.skipped == metrics.updates);
  summary->set_clip_fraction(objective.ClipFraction());
  summary->set_mask_fraction(objective.MaskFraction());
  summary->set_sequence_clip_fraction(objective.SequenceClipFraction());
  summary->set_sequence_mask_fraction(objective.SequenceMaskFraction());
  summary->set_effective_sample_size(objective.EffectiveSampleSize());
  summary->set_router_choices(static_cast<uint64_t>(metrics.routing_choices));
  summary->set_router_mismatch(metrics.routing_differing / std::max(1.0, metrics.routing_choices));
  auto& seconds = *summary->mutable_seconds();
  seconds["old_log_prob"] = metrics.old_log_prob_seconds;
  seconds["reference"] = metrics.reference_seconds;
  seconds["forward_backward"] = metrics.forward_backward_seconds;
  seconds["reduce"] = metrics.reduce_seconds;
  seconds["optimizer"] = metrics.optimizer_seconds;
  const double train_seconds = metrics.old_log_prob_seconds + metrics.reference_seconds +
                               metrics.forward_backward_seconds + metrics.reduce_seconds + metrics.optimizer_seconds;
  summary->set_train_tokens_per_second(metrics.tokens / std::max(1e-9, train_seconds));
}

void ExportStepFigures(const v1::StepSummary& summary, const TrainMetrics& metrics, MetricsRegistry& registry) {
  registry.Counter("rl_learner_nonfinite_gradients_total").Increment(metrics.skipped);
  registry.Counter("rl_learner_tokens_total").Increment(metrics.objective.tokens);
  registry.Counter("rl_learner_is_weight_clipped_tokens_total", {{"side", "low"}})
      .Increment(metrics.objective.clipped_low);
  registry.Counter("rl_learner_is_weight_clipped_tokens_total", {{"side", "high"}})
      .Increment(metrics.objective.clipped_high);
  registry.Counter("rl_learner_masked_tokens_total", {{"reason", "importance_weight"}})
      .Increment(metrics.objective.masked);
  registry.Counter("rl_learner_sequences_total").Increment(metrics.objective.sequences);
  registry.Counter("rl_learner_clipped_sequences_total").Increment(metrics.objective.sequences_clipped);
  registry.Counter("rl_learner_masked_sequences_total").Increment(metrics.objective.sequences_masked);
  registry.Gauge("rl_learner_effective_sample_size_ratio").Set(summary.effective_sample_size());

  registry.Gauge("rl_learner_mismatch_kl_nats").Set(summary.kl_k1());
  registry.Gauge("rl_learner_mismatch_kl_estimate_nats", {{"estimator", "k1"}}).Set(summary.kl_k1());
  registry.Gauge("rl_learner_mismatch_kl_estimate_nats", {{"estimator", "k2"}}).Set(summary.kl_k2());
  registry.Gauge("rl_learner_mismatch_kl_estimate_nats", {{"estimator", "k3"}}).Set(summary.kl_k3());
  registry.Gauge("rl_learner_logprob_abs_diff_mean").Set(summary.mean_abs_log_ratio());
  registry.Gauge("rl_learner_logprob_abs_diff_max").Set(summary.max_abs_log_ratio());
  registry.Gauge("rl_learner_probability_diff", {{"bound", "max"}}).Set(summary.max_probability_difference());
  registry.Gauge("rl_learner_probability_diff", {{"bound", "min"}}).Set(summary.min_probability_difference());
  registry.Gauge("rl_learner_mismatch_outside_ratio").Set(summary.ratio_outside_fraction());
  registry.Gauge("rl_learner_probability_correlation").Set(summary.probability_correlation());
  registry.Gauge("rl_learner_perplexity", {{"policy", "rollout"}}).Set(summary.rollout_perplexity());
  registry.Gauge("rl_learner_perplexity", {{"policy", "training"}}).Set(summary.training_perplexity());
  registry.Gauge("rl_learner_perplexity_ratio").Set(summary.perplexity_ratio());
  registry.Gauge("rl_learner_sequence_log_ratio_nats", {{"statistic", "mean"}}).Set(summary.sequence_log_ratio_mean());
  registry.Gauge("rl_learner_sequence_log_ratio_nats", {{"statistic", "min"}}).Set(summary.sequence_log_ratio_min());
  registry.Gauge("rl_learner_sequence_log_ratio_nats", {{"statistic", "max"}}).Set(summary.sequence_log_ratio_max());
  registry.Gauge("rl_learner_sequence_log_ratio_slope").Set(summary.sequence_log_ratio_slope());
  registry.Gauge("rl_learner_mismatch_sample_size_ratio", {{"level", "token"}})
      .Set(summary.effective_sample_size_token());
  registry.Gauge("rl_learner_mismatch_sample_size_ratio", {{"level", "sequence"}})
      .Set(summary.effective_sample_size_sequence());
  registry.Gauge("rl_learner_mismatch_chi_square", {{"level", "token"}}).Set(summary.chi_square_token());
  registry.Gauge("rl_learner_mismatch_chi_square", {{"level", "sequence"}}).Set(summary.chi_square_sequence());

  registry.Gauge("rl_learner_router_mismatch_ratio").Set(summary.router_mismatch());

  registry.Gauge("rl_learner_reference_kl_nats").Set(summary.reference_kl());
  registry.Gauge("rl_learner_loss", {{"term", "policy"}}).Set(summary.loss() - summary.kl_loss());
  registry.Gauge("rl_learner_loss", {{"term", "kl"}}).Set(summary.kl_loss());
  registry.Gauge("rl_learner_loss", {{"term", "total"}}).Set(summary.loss());
  registry.Gauge("rl_learner_entropy_nats").Set(summary.entropy());
  registry.Gauge("rl_learner_grad_norm").Set(summary.grad_norm());
}

}  // namespace lockstep
