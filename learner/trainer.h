// The trainer: samples in, one optimizer step (or several) out. A TrainEngine computes: FP32 master weights, moments
// and gradients lie in its flat arenas of the layout's order; the decoder computes with a copy of the masters rounded
// to learner.dtype.
//
// One update:
//   1. pack the samples, in their order, into micro-batches of at most micro_batch_tokens tokens; micro-batch j belongs
//      to rank j mod world_size; a sequence is never split, so one forward gives every sequence-level weight
//   2. for each: log pi (forward), objective: coefficients d loss / d log pi, times the loss scale, backward into the
//      gradient arena
//   3. all-reduce (sum), agree on finite, unscale and clip in one factor, AdamW, round the copy
// pi_old, where an objective asks for it and the step has more than one update: log pi of all samples by one more
// forward pass before the first (algorithm.old_log_prob: recompute), or mu itself (rollout). With one update pi_old is
// the pi of the pass itself. A KL penalty (algorithm.kl_beta > 0) keeps the initial weights as a second copy in
// learner.dtype and costs one more forward pass too. Both passes have seconds of their own in TrainMetrics.
//
// Router replay (learner.router_replay: replay): the forward passes under the trained weights, that of pi_old too, take
// the experts of TrainSample::routing with the trained routers' own probabilities as weights, so the routers still
// learn; the reference is a policy of its own and chooses for itself. With `measure` and with `replay` the choices that
// the trained routers would have made otherwise are counted, in the passes that `mismatch` is of.
//
// A gradient that is not finite skips the update on all ranks: weights, moments and step count stay as they are.
//
// Ranks: the sum over micro-batches is taken in another order than on one rank. For an element g = sum_j g_j over M
// micro-batches, |g(2 ranks) - g(1 rank)| <= 2 (M - 1) 2^-24 sum_j |g_j|, the bound of any two orders of an FP32 sum.
// All ranks hold the same bits after every update.
//
// With lora.rank > 0 what is trained, and lies in the arenas, are the adapters (learner/lora.h); the decoder computes
// with round(base + scale B A). The rest of this file holds as it stands.
#ifndef LOCKSTEP_LEARNER_TRAINER_H_
#define LOCKSTEP_LEARNER_TRAINER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/checkpoint/state.h"
#include "engine/model/model.h"
#include "learner/collectives.h"
#include "learner/cpu_train_engine.h"
#include "learner/loss_scaler.h"
#include "learner/micro_batch.h"
#include "learner/mismatch.h"
#include "learner/objective.h"
#include "learner/train_engine.h"
#include "proto/run_config.pb.h"

namespace lockstep {

struct TrainerOptions {
  ModelConfig config;
  DType dtype = DType::kF16;
  Numerics numerics = Numerics::kMatched;
  v1::LearnerConfig learner;
  v1::AlgorithmConfig algorithm;
  LoraOptions lora;                 // rank 0: all parameters are trained
  float temperature = 1;            // of the sampling distribution; supervised steps use 1
  int64_t max_response_tokens = 1;  // the constant of algorithm.aggregation: constant
  absl::Duration collective_timeout = absl::Seconds(120);
};

// Of one step: over its updates, all ranks.
struct TrainMetrics {
  ObjectiveStats objective;  // loss: sum over updates
  // mu against the policy of before the step's first update, so numerics and staleness alone: over all samples where
  // pi_old is recomputed, else over those of the updates before the weights first moved.
  MismatchStats mismatch;
  double routing_choices = 0;    // pairs of a token and a layer whose experts the rollout sent
  double routing_differing = 0;  // of them: the trained routers choose another set
  double entropy_sum = 0;        // over objective.tokens
  uint32_t updates = 0;
  uint32_t skipped = 0;   // updates whose gradient was not finite
  double grad_norm = 0;   // before clipping, unscaled, of the last update; not finite when it was skipped
  double loss_scale = 0;  // that the last update used
  double tokens = 0;      // prompt and response tokens of the forward and backward passes
  double forward_backward_seconds = 0;
  double old_log_prob_seconds = 0;
  double reference_seconds = 0;
  double reduce_seconds = 0;
  double optimizer_seconds = 0;
};

class Trainer {
 public:
  // The masters start at zero: set them through arena() and call RefreshWeights. With LoRA the base is loaded here.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(const TrainerOptions& options, Collectives* collectives,
                                                         const TrainEngineFactory& make_engine = MakeCpuTrainEngine);
  ~Trainer();

  // Every rank calls these with the same arguments. `updates` splits the samples, in order, into as many parts, each
  // giving one optimizer step. An error ends the run.
  absl::StatusOr<TrainMetrics> Step(std::vector<TrainSample> samples, uint32_t updates);
  // Supervised: loss = -1/N sum over the N response tokens of log pi.
  absl::StatusOr<TrainMetrics> SupervisedStep(const std::vector<TrainSample>& samples);

  // Host memory is what the functions below read and write. Brings it what steps have changed (TrainEngine::Fetch):
  // comes before arena(), params(), StateArrays() or gradients() are read.
  absl::Status Fetch(TrainArrays what);
  // FP32 masters of what is trained: all parameters [layout.total_size], or the adapters [lora()->total_size].
  float* arena();
  const float* arena() const;
  int64_t arena_size() const;
  // Null without LoRA.
  const LowRankLayout* lora() const;
  // All parameters as rollout servers and checkpoints need them: the masters, or with LoRA the merged weights.
  ParamSource params() const;
  // The same on a device, as of now and without a Fetch; null: the host has them.
  const DeviceParams* device_params() const;
  // Rounds the compute copy from the masters, or merges the adapters into it.
  absl::Status RefreshWeights();
  // With algorithm.kl_beta > 0: the reference is the weights of now, until the next call.
  bool needs_reference() const;
  absl::Status CaptureReference();
  // The gradient of the last update, scaled by the loss scale, after the all-reduce.
  const float* gradients() const;

  // Rank 0's masters, moments, counters, scaler and reference to every rank.
  absl::Status BroadcastState();
  std::vector<StateArray> StateArrays();
  void SaveState(StateValues* values) const;
  absl::Status RestoreState(const StateValues& values);
  const LossScaler& loss_scaler() const;
  // Optimizer steps done.
  int64_t optimizer_steps() const;

 private:
  struct Impl;
  explicit Trainer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_TRAINER_H_
