// Samples as the decoder takes them: packed end to end, as many as a micro-batch holds.
#ifndef LOCKSTEP_LEARNER_MICRO_BATCH_H_
#define LOCKSTEP_LEARNER_MICRO_BATCH_H_

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/decoder.h"
#include "engine/model/model.h"

namespace lockstep {

struct TrainSample {
  std::vector<int32_t> prompt;
  std::vector<int32_t> response;
  std::vector<float> log_mu;  // [response]; empty: supervised
  float advantage = 0;
  // Experts that the rollout chose for all positions but the last, [prompt + response - 1] rows of
  // engine/model/routing.h; empty: unknown, the routers choose.
  std::string routing;
  // [response]; filled by the trainer where the objective needs them.
  std::vector<float> log_pi_old;
  std::vector<float> log_ref;
};

// Prompt and response.
int64_t SampleTokens(const TrainSample& sample);

// Tokens packed end to end; the row before each response token predicts it.
struct MicroBatch {
  PackedBatch packed;
  std::vector<int32_t> offsets = {0};  // of responses among the loss rows
  std::vector<float> log_mu, log_pi_old, log_ref, advantage, loss_weight;
};

// routing_row_bytes: of TrainSample::routing; 0 leaves it out.
MicroBatch BuildMicroBatch(std::span<const TrainSample> samples, std::span<const float> loss_weights,
                           size_t routing_row_bytes);

// Bytes of a token's routing (engine/model/routing.h) where learner.router_replay asks for it, else 0. INVALID_ARGUMENT
// where the setting is unknown, or the model has no experts.
absl::StatusOr<size_t> RoutingRowBytes(const std::string& router_replay, const ModelConfig& model);

// Micro-batches as ranges [begin, end) of samples in order: as many samples as fit `max_tokens`; a sample that is
// longer alone is one by itself.
std::vector<std::pair<size_t, size_t>> PackMicroBatches(std::span<const TrainSample> samples, int64_t max_tokens);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_MICRO_BATCH_H_
