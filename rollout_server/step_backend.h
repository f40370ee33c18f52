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
  // Of a step launched ahead, by row: the output row of the step in flight whose draw is this row's token (its place in
  // batch.tokens has 0), or -1: batch.tokens has it. Of other steps empty.
  std::span<const int32_t> from{};
};

// Memory of the caller, used again from step to step.
struct StepOutput {
  std::vector<Draw> draws;      // one a request; of a row that is not finite without meaning
  std::vector<uint8_t> finite;  // [output rows]: all logits, and their log-sum-exp at the row's temperature
  std::string routing;          // [T] rows of engine/model/routing.h; empty where it is not wanted
  // On the CPU of forward pass and logits, the rest is the sampler's; on a device those for which the host waited for
  // the step, which goes on while the host does other things.
  double decoder_seconds = 0;
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
  // else holds the set. Thread safe, also beside steps: a switch that comes after it stops decoding for no time.
  // RESOURCE_EXHAUSTED: it does not fit. INVALID_ARGUMENT: the set is in memory that it does not read.
  virtual absl::Status Prepare(const std::shared_ptr<const WeightSet>& weights) = 0;
  // Makes sets that updates fill where steps compute; what they release needs no bringing over. Null: there are none.
  // Of any thread, as Prepare; the backend outlives its calls.
  virtual MakeShadow device_shadow() { return nullptr; }
  // Starts one step with a prepared set, which lives until the step is collected; `input` is free again on return. An
  // error is of the device: nothing can be computed any more.
  virtual absl::Status Launch(const WeightSet& weights, const StepInput& input) = 0;
  // Waits for the oldest step that has been launched and not collected.
  virtual absl::Status Collect(StepOutput* output) = 0;
  // Whether a step may be launched ahead: while one other is in flight, which its rows go on from. Both are of decode
  // rows alone (one row a sequence, each drawn from once), and what else is called comes behind them on the device.
  virtual bool launches_ahead() const = 0;
  // The first `tokens` positions of a page in every layer (copy-on-write of a shared, partly filled page).
  virtual absl::Status CopyPage(int32_t from, int32_t to, int64_t tokens) = 0;
  // Whether it still computes; asked now and then while there is nothing to compute. An error is as one of Step: of the
  // device, whatever call has met it.
  virtual absl::Status Check() { return absl::OkStatus(); }
};

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_STEP_BACKEND_H_
