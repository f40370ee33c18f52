// What computes a training step, on one device: forward and backward passes, the sum of gradients over ranks, AdamW,
// and the state that they work on. The trainer decides what is computed and when, and knows nothing of where.
//
// State: FP32 masters of what is trained (all parameters in ParamLayout's order, or LoRA adapters in LowRankLayout's),
// two moments and the gradient of it, and the compute copy of all parameters in the dtype. An error is of the device or
// of a rank and ends the run. Called by one thread.
#ifndef LOCKSTEP_LEARNER_TRAIN_ENGINE_H_
#define LOCKSTEP_LEARNER_TRAIN_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/kernels/adamw.h"
#include "engine/kernels/ops.h"
#include "engine/model/decoder.h"
#include "engine/model/low_rank.h"
#include "engine/model/model.h"
#include "learner/collectives.h"
#include "learner/lora.h"

namespace lockstep {

class DeviceParams;  // weight_sync/device_params.h

struct TrainEngineOptions {
  ModelConfig config;
  DType dtype = DType::kF16;
  Numerics numerics = Numerics::kMatched;
  int threads = 1;
  bool recompute = false;  // keep layer inputs only
  LoraOptions lora;        // rank 0: all parameters are trained
};

enum class Policy : uint8_t { kTrained, kReference };
// kState: masters and moments.
enum class TrainArrays : uint8_t { kMasters, kState, kGradients };

class TrainEngine {
 public:
  virtual ~TrainEngine() = default;

  // Decoder::ForwardPacked. The trained policy's keeps what Backward needs, in full or recomputed, as the options say;
  // entropy null: the pass is for log-probs alone, and no Backward follows.
  virtual absl::Status Forward(Policy policy, const PackedBatch& batch, float temperature, float* log_prob,
                               float* entropy, RoutingTrace* trace) = 0;
  // Decoder::Backward of the last Forward, which was the trained policy's and of `batch`: adds to the gradients.
  virtual absl::Status Backward(const PackedBatch& batch, float temperature, const float* coefficient) = 0;
  virtual absl::Status ZeroGradients() = 0;

  // The gradients become their sum over the ranks.
  virtual absl::Status AllReduceGradients(Collectives* collectives, absl::Duration timeout) = 0;
  // Norm of the gradients / scale; not finite exactly if an element is not finite. limit: the clip of the Update that
  // follows, 0 for none (a device makes its factor without waiting for the host).
  virtual absl::StatusOr<double> GradientNorm(double scale, double limit) = 0;
  // AdamW with params.weight_decay for the parameters that decay, then the compute copy is made anew. GradientNorm
  // comes before it, and found the gradients finite.
  virtual absl::Status Update(const AdamWParams& params) = 0;

  // The reference is the compute copy of now, until the next call.
  virtual absl::Status CaptureReference() = 0;
  virtual bool has_reference() const = 0;
  // Rank 0's, to every rank.
  virtual absl::Status BroadcastReference(Collectives* collectives, absl::Duration timeout) = 0;

  // Host memory [size()] for the state: the state itself, or a copy of it. Fetch comes before reading what a step has
  // changed; Store, after writing, makes it the state (masters, or masters and moments) and the compute copy anew.
  virtual int64_t size() const = 0;
  virtual float* masters() = 0;
  virtual float* moment1() = 0;
  virtual float* moment2() = 0;
  virtual const float* gradients() = 0;
  virtual absl::Status Fetch(TrainArrays what) = 0;
  virtual absl::Status Store(TrainArrays what) = 0;
  // All parameters, as of the last Fetch or Store of the masters: these, or with LoRA the merged weights.
  virtual ParamSource params() const = 0;
  // The masters where they lie on a device, as they are now; null: the host has them, through params().
  virtual const DeviceParams* device_params() const { return nullptr; }
  // Null without LoRA.
  virtual const LoraBase* lora() const = 0;
};

using TrainEngineFactory =
    std::function<absl::StatusOr<std::unique_ptr<TrainEngine>>(const TrainEngineOptions& options)>;

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_TRAIN_ENGINE_H_
