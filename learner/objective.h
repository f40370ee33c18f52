// Objectives: pure functions from numbers to numbers. In: per-token log-probs of pi, mu and (for clipped objectives)
// the old policy, one advantage and one aggregation weight a sequence. Out: the loss, its gradient with respect to each
// log pi, and what the importance weights did. No tensors of the model, no RPC, no clock.
//
// Notation (PAPER: arXiv 2510.26788): mu the policy that sampled, pi the policy that is trained, pi_old the trained
// policy before this step's first update; A the advantage; sg() the stop-gradient: a factor in sg() is a constant for
// the gradient. Every loss is sum_i w_i sum_t loss_it over sequences i and response tokens t, with w_i the
// aggregation weight (AggregationWeights below).
//
// Adding an objective: one file in objectives/ and one line in the table in objective.cc.
#ifndef LOCKSTEP_LEARNER_OBJECTIVE_H_
#define LOCKSTEP_LEARNER_OBJECTIVE_H_

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace lockstep {

// Response tokens of some sequences, end to end: N tokens, S sequences.
struct ObjectiveBatch {
  std::span<const int32_t> offsets;    // [S + 1]; sequence i is tokens [offsets[i], offsets[i + 1])
  std::span<const float> log_pi;       // [N]
  std::span<const float> log_mu;       // [N]
  std::span<const float> log_pi_old;   // [N]; for objectives with needs_old_log_prob
  std::span<const float> advantage;    // [S]
  std::span<const float> loss_weight;  // [S] w_i
};

struct ObjectiveParams {
  float is_clip = std::numeric_limits<float>::infinity();  // C of truncation or mask
  float clip_low = 0.2f;
  float clip_high = 0.2f;
};

// Counts of one or more batches; sums, so that batches and ranks add up.
struct ObjectiveStats {
  double loss = 0;
  double tokens = 0;
  double clipped_low = 0;        // tokens whose weight or ratio met the lower bound
  double clipped_high = 0;       // ... the upper bound
  double masked = 0;             // tokens left out by a mask
  double weights = 0;            // importance weights seen (tokens or sequences, by the objective's level)
  double weight_sum = 0;         // sum of them, after truncation
  double weight_square_sum = 0;  // sum of squares

  void Add(const ObjectiveStats& other);
  double ClipFraction() const { return tokens > 0 ? (clipped_low + clipped_high + masked) / tokens : 0; }
  // (sum w)^2 / (n sum w^2) in (0, 1]; 1 without importance weights.
  double EffectiveSampleSize() const;
};

struct Objective {
  std::string_view name;
  // Default of C where the config gives 0.
  float default_is_clip;
  bool needs_old_log_prob;
  // Writes d loss / d log_pi [N] (loss_weight included) and adds to stats.
  void (*compute)(const ObjectiveBatch& batch, const ObjectiveParams& params, std::span<float> d_log_pi,
                  ObjectiveStats& stats);
};

// INVALID_ARGUMENT lists the known names.
absl::StatusOr<const Objective*> FindObjective(std::string_view name);
std::vector<std::string_view> ObjectiveNames();

// w_i of each sequence: "constant": 1 / (max_tokens S); "sequence_mean": 1 / (length_i S); "token_mean": 1 / sum of
// lengths. Over the whole update (all micro-batches, all ranks). Source: PAPER.md section 1, Aggregation.
absl::StatusOr<std::vector<float>> AggregationWeights(std::string_view kind, std::span<const int64_t> lengths,
                                                      int64_t max_tokens);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_OBJECTIVE_H_
