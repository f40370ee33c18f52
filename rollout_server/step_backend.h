// What computes the engine's steps: decoder, KV pages, logits and sampler of one device. The engine (BatchEngine)
// decides which rows a step has and which pages they use, and knows nothing of where they are computed.
//
// One thread calls everything but Prepare.
#ifndef LOCKSTEP_ROLLOUT_SERVER_STEP_BACKEND_H_
#define LOCKSTEP_ROLLOUT_SERVER_STEP_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/decoder.h"
#include "rollout_server/sampler.h"
#include "weight_sync/shadow.h"

namespace lockstep {

// One token to be drawn. The samples that one prefill serves draw their first tokens from one row.
struct DrawRequest {
  int64_t output_row = 0;  // index into PagedBatch::output_rows
  SamplingTransform transform;
  DrawKey key;
};

struct StepInput {
  const PagedBatch& batch;
  // By output row, ascending; every output row has at least one, and those of one row have one transform.
  std::span<const DrawRequest> draws;
  bool wants_routing = false;
};

// Memory of the caller, used again from step to step.
struct StepOutput {
  std::vector<Draw> draws;      // one a request; of a row that is not finite without meaning
  std::vector<uint8_t> finite;  // [output rows]: all logits, and their log-sum-exp at the row's temperature
  std::string routing;          // [T] rows of engine/model/routing.h; empty where it is not wanted
  double decoder_seconds = 0;   // of forward pass and logits; the rest is the sampler's
};

// Weight sets in memory under `finish`: the current one and two older ones. One more is being made.
inline constexpr size_t kMaxWeightSets = 3;

class StepBackend {
 public:
  virtual ~StepBackend() = default;
  virtual int64_t num_pages() const = 0;
  // Of the longest sequence that it computes.
  virtual int64_t max_sequence_tokens() const = 0;
  // Brings a set to where steps compute, once; further calls do nothing. The backend's copy lives as long as something
  // else holds the set. Thread safe, also beside Step: a switch that comes after it stops decoding for no time.
  // RESOURCE_EXHAUSTED: it does not fit. INVALID_ARGUMENT: the set is in memory that it does not read.
  virtual absl::Status Prepare(const std::shared_ptr<const WeightSet>& weights) = 0;
  // Makes sets that updates fill where steps compute; what they release needs no bringing over. Null: there are none.
  // Of any thread, as Prepare; the backend outlives its calls.
  virtual MakeShadow device_shadow() { return nullptr; }
  // One step with a prepared set. An error is of the device: nothing can be computed any more.
  virtual absl::Status Step(const WeightSet& weights, const StepInput& input, StepOutput* output) = 0;
  // The first `tokens` positions of a page in every layer (copy-on-write of a shared, partly filled page).
  virtual absl::Status CopyPage(int32_t from, int32_t to, int64_t tokens) = 0;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_STEP_BACKEND_H_
