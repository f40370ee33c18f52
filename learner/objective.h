// Objectives: pure functions from numbers to numbers. In: per-token log-probs of pi, mu and (for clipped objectives)
// the old policy, one advantage and one aggregation weight a sequence. Out: the loss, its gradient with respect to each
// log pi, and what the importance weights did. No tensors of the model, no RPC, no clock.
//
// Notation (PAPER: arXiv 2510.26788): mu the policy that sampled, pi the policy that is trained, pi_old the trained
// policy before this step's first update; A the advantage; sg() the stop-gradient: a factor in sg() is a constant for
// the gradient. Every loss is sum_i w_i sum_t loss_it over sequences i and response tokens t, with w_i the
// aggregation weight (AggregationWeights below).
//
// Adding an objective: one file in objectives/, one line in proto/algorithms.cc and one in objective.cc; see
// docs/objectives.md.
#ifndef LOCKSTEP_LEARNER_OBJECTIVE_H_
#define LOCKSTEP_LEARNER_OBJECTIVE_H_

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/algorithms.h"

namespace lockstep {

// Response tokens of some sequences, end to end: N tokens, S sequences.
struct ObjectiveBatch {
  std::span<const int32_t> offsets;     // [S + 1]; sequence i is tokens [offsets[i], offsets[i + 1])
  std::span<const float> log_pi;        // [N]
  std::span<const float> log_mu;        // [N]
  std::span<const float> log_pi_old;    // [N]; for objectives with needs_old_log_prob
  std::span<const float> advantage;     // [S]
  std::span<const float> loss_weight;   // [S] w_i
  std::span<const float> log_ref = {};  // [N]; for the KL penalty
};

struct ObjectiveParams {
  float is_clip = std::numeric_limits<float>::infinity();  // C of truncation or mask
  float clip_low = 0.2f;
  float clip_high = 0.2f;
  float is_low = 0;  // lower bound of a two-sided mask

  // algorithm is resolved (ResolveAlgorithm); C 0 is no bound.
  static ObjectiveParams From(const v1::AlgorithmConfig& algorithm);
};

// Counts of one or more batches; sums, so that batches and ranks add up. Each token is counted once: kept, clipped
// (its weight or ratio met a bound) or masked.
struct ObjectiveStats {
  double loss = 0;
  double tokens = 0;
  double clipped_low = 0;   // tokens at the lower bound
  double clipped_high = 0;  // tokens at the upper bound
  double masked = 0;        // tokens left out by a mask
  double sequences = 0;
  double sequences_clipped = 0;  // with at least one such token
  double sequences_masked = 0;
  double weights = 0;            // importance weights seen (tokens or sequences, by the objective's level)
  double weight_sum = 0;         // sum of them, after truncation
  double weight_square_sum = 0;  // sum of squares
  double kl_loss = 0;            // of the KL penalty, beta and aggregation weights included; not part of loss
  double kl_sum = 0;             // over tokens, of k3 to the reference

  // The sums above, for adding up over ranks.
  std::vector<double*> Fields();
  void Add(const ObjectiveStats& other);
  void AddWeight(double weight);
  double ClipFraction() const { return tokens > 0 ? (clipped_low + clipped_high) / tokens : 0; }
  double MaskFraction() const { return tokens > 0 ? masked / tokens : 0; }
  double SequenceClipFraction() const { return sequences > 0 ? sequences_clipped / sequences : 0; }
  double SequenceMaskFraction() const { return sequences > 0 ? sequences_masked / sequences : 0; }
  // (sum w)^2 / (n sum w^2) in (0, 1]; 1 without importance weights.
  double EffectiveSampleSize() const;
};

struct Objective {
  std::string_view name;
  const AlgorithmSpec* spec;
  // Writes d loss / d log_pi [N] (loss_weight included) and adds to stats.
  void (*compute)(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                  ObjectiveStats& stats);
};

// Adds the KL penalty beta k3(ref || pi) to d_log_pi [N] and stats. objectives/kl_penalty.cc
void AddKlPenalty(const ObjectiveBatch& batch, float beta, std::span<float> d_log_pi, ObjectiveStats& stats);

// INVALID_ARGUMENT lists the known names.
absl::StatusOr<const Objective*> FindObjective(std::string_view name);
std::vector<std::string_view> ObjectiveNames();

// w_i of each sequence: "constant": 1 / (max_tokens S); "sequence_mean": 1 / (length_i S); "token_mean": 1 / sum of
// lengths. Over the whole update (all micro-batches, all ranks). Source: PAPER.md section 1, Aggregation.
absl::StatusOr<std::vector<float>> AggregationWeights(std::string_view kind, std::span<const int64_t> lengths,
                                                      int64_t max_tokens);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_OBJECTIVE_H_
