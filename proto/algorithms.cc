#include "proto/algorithms.h"

namespace lockstep {

const std::vector<AlgorithmSpec>& Algorithms() {
  // The constants are arXiv 2510.26788's where it has some: Token-TIS 2, Seq-TIS and Seq-MIS 3, GRPO-Seq-MIS 10, PPO
  // clip 0.2 / 0.2, GSPO 3e-4 / 4e-4. GRPO by its name divides by the standard deviation and takes token means; what
  // the paper's scripts run under that name is dr_grpo.
  static const auto* table = new std::vector<AlgorithmSpec>{
      {.name = "pg"},
      {.name = "reinforce"},  // the same
      {.name = "pg_token_is", .uses_mu = true},
      {.name = "pg_token_tis", .is_clip = 2, .uses_mu = true},
      {.name = "pg_seq_is", .uses_mu = true},
      {.name = "pg_seq_tis", .is_clip = 3, .uses_mu = true},
      {.name = "pg_seq_mis", .is_clip = 3, .uses_mu = true},
      {.name = "pg_geo_rs", .is_clip = 1.001f, .is_low = 0.999f, .uses_mu = true},
      {.name = "pg_geo_mis", .is_clip = 1.001f, .is_low = 0.999f, .uses_mu = true},
      {.name = "grpo",
       .clip_low = 0.2f,
       .clip_high = 0.2f,
       .uses_old = true,
       .advantage = "mean_std",
       .aggregation = "sequence_mean"},
      {.name = "dr_grpo", .clip_low = 0.2f, .clip_high = 0.2f, .uses_old = true, .fixed = true},
      {.name = "dapo",
       .clip_low = 0.2f,
       .clip_high = 0.28f,
       .uses_old = true,
       .advantage = "mean_std",
       .aggregation = "token_mean",
       .fixed = true},
      {.name = "grpo_token_tis",
       .is_clip = 2,
       .clip_low = 0.2f,
       .clip_high = 0.2f,
       .uses_old = true,
       .uses_mu = true,
       .advantage = "mean_std",
       .aggregation = "sequence_mean"},
      {.name = "grpo_seq_tis",
       .is_clip = 3,
       .clip_low = 0.2f,
       .clip_high = 0.2f,
       .uses_old = true,
       .uses_mu = true,
       .advantage = "mean_std",
       .aggregation = "sequence_mean"},
      {.name = "grpo_seq_mis",
       .is_clip = 10,
       .clip_low = 0.2f,
       .clip_high = 0.2f,
       .uses_old = true,
       .uses_mu = true,
       .advantage = "mean_std",
       .aggregation = "sequence_mean"},
      {.name = "decoupled_ppo",
       .clip_low = 0.2f,
       .clip_high = 0.2f,
       .uses_old = true,
       .uses_mu = true,
       .advantage = "mean_std",
       .aggregation = "token_mean"},
      {.name = "icepop",
       .is_clip = 5,
       .is_low = 0.5f,
       .clip_low = 0.2f,
       .clip_high = 0.2f,
       .uses_old = true,
       .uses_mu = true,
       .advantage = "mean_std",
       .aggregation = "sequence_mean"},
      {.name = "gspo",
       .clip_low = 3e-4f,
       .clip_high = 4e-4f,
       .uses_old = true,
       .advantage = "mean_std",
       .aggregation = "sequence_mean"},
      {.name = "cispo",
       .clip_low = 1,
       .clip_high = 0.28f,
       .uses_old = true,
       .advantage = "mean_std",
       .aggregation = "token_mean"},
  };
  return *table;
}

const AlgorithmSpec* FindAlgorithm(std::string_view name) {
  for (const AlgorithmSpec& spec : Algorithms()) {
    if (spec.name == name) return &spec;
  }
  return nullptr;
}

std::string AlgorithmNames() {
  std::string names;
  for (const AlgorithmSpec& spec : Algorithms()) {
    if (!names.empty()) names += ", ";
    names += spec.name;
  }
  return names;
}

void ResolveAlgorithm(v1::AlgorithmConfig* algorithm) {
  const AlgorithmSpec* spec = FindAlgorithm(algorithm->name());
  if (spec == nullptr) return;
  if (algorithm->is_clip() == 0) algorithm->set_is_clip(spec->is_clip);
  if (algorithm->is_low() == 0) algorithm->set_is_low(spec->is_low);
  if (algorithm->clip_low() == 0) algorithm->set_clip_low(spec->clip_low);
  if (algorithm->clip_high() == 0) algorithm->set_clip_high(spec->clip_high);
  const auto automatic = [](const std::string& value) { return value.empty() || value == "auto"; };
  if (automatic(algorithm->advantage())) algorithm->set_advantage(std::string(spec->advantage));
  if (automatic(algorithm->aggregation())) algorithm->set_aggregation(std::string(spec->aggregation));
}

}  // namespace lockstep
