#include "learner/cpu_train_engine.h"

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/kernels/optimizer.h"

namespace lockstep {
namespace {

class CpuTrainEngine final : public TrainEngine {
 public:
  explicit CpuTrainEngine(const TrainEngineOptions& options)
      : options_(options),
        ops_(MakeCpuOps(options.numerics, options.threads)),
        decoder_(options.config, options.dtype, ops_.get()),
        pool_(options.threads),
        weights_(options.config, options.dtype) {}
  absl::Status Allocate();

  absl::Status Forward(Policy policy, const PackedBatch& batch, float temperature, float* log_prob, float* entropy,
                       RoutingTrace* trace) override;
  absl::Status Backward(const PackedBatch& batch, float temperature, const float* coefficient) override;
  absl::Status ZeroGradients() override {
    std::memset(gradient_.data(), 0, gradient_.bytes());
    return absl::OkStatus();
  }
  absl::Status AllReduceGradients(Collectives* collectives, absl::Duration timeout) override {
    return collectives->AllReduceSum(gradient_.As<float>(), size_, timeout);
  }
  absl::StatusOr<double> GradientNorm(double scale, double) override {
    return std::sqrt(GradNormSquared(gradient_.As<float>(), size_, pool_)) / scale;
  }
  absl::Status Update(const AdamWParams& params) override;

  absl::Status CaptureReference() override;
  bool has_reference() const override { return reference_ != nullptr; }
  absl::Status BroadcastReference(Collectives* collectives, absl::Duration timeout) override;

  int64_t size() const override { return size_; }
  float* masters() override { return master_.As<float>(); }
  float* moment1() override { return moment1_.As<float>(); }
  float* moment2() override { return moment2_.As<float>(); }
  const float* gradients() override { return gradient_.As<float>(); }
  absl::Status Fetch(TrainArrays) override { return absl::OkStatus(); }
  absl::Status Store(TrainArrays) override { return Refresh(); }
  ParamSource params() const override {
    return lora_ == nullptr ? ParamSource(master_.As<float>()) : ParamSource(&weights_);
  }
  const LoraBase* lora() const override { return lora_.get(); }

 private:
  absl::Status Refresh();
  void Step(AdamWParams params, int64_t offset, int64_t count, bool decay);
  // Of the reference, all rows of a parameter, through `values`.
  Tensor RowsOf(int param, std::vector<float>* values) const;

  const TrainEngineOptions options_;
  const std::unique_ptr<Ops> ops_;
  Decoder decoder_;
  ThreadPool pool_;
  Weights weights_;
  std::unique_ptr<Weights> reference_;  // null without a KL penalty
  std::unique_ptr<LoraBase> lora_;      // null: all parameters are trained
  int64_t size_ = 0;                    // elements of each arena
  Buffer master_, moment1_, moment2_, gradient_;
};

absl::Status CpuTrainEngine::Allocate() {
  size_ = weights_.layout.total_size;
  if (options_.lora.config.rank() > 0) {
    auto lora = LoraBase::Load(options_.lora, options_.threads, &weights_);
    if (!lora.ok()) return lora.status();
    lora_ = *std::move(lora);
    size_ = lora_->layout().total_size;
  }
  const size_t bytes = static_cast<size_t>(size_) * sizeof(float);
  for (Buffer* buffer : {&master_, &moment1_, &moment2_, &gradient_}) *buffer = Buffer(bytes);
  return absl::OkStatus();
}

absl::Status CpuTrainEngine::Forward(Policy policy, const PackedBatch& batch, float temperature, float* log_prob,
                                     float* entropy, RoutingTrace* trace) {
  const bool trained = policy == Policy::kTrained;
  LOCKSTEP_CHECK(trained || reference_ != nullptr, "CaptureReference comes before a pass of the reference");
  // A pass without entropy is of log-probs alone: no Backward follows, and nothing is kept for one.
  const bool recompute = options_.recompute || entropy == nullptr;
  decoder_.ForwardPacked(trained ? weights_ : *reference_, batch, temperature, recompute, log_prob, entropy, trace);
  return absl::OkStatus();
}

absl::Status CpuTrainEngine::Backward(const PackedBatch& batch, float temperature, const float* coefficient) {
  if (lora_ == nullptr) {
    decoder_.Backward(weights_, batch, temperature, coefficient, gradient_.As<float>());
  } else {
    const LowRankGradients gradients{&lora_->layout(), master_.As<float>(), gradient_.As<float>()};
    decoder_.Backward(weights_, batch, temperature, coefficient, gradients);
  }
  return absl::OkStatus();
}

void CpuTrainEngine::Step(AdamWParams params, int64_t offset, int64_t count, bool decay) {
  if (!decay) params.weight_decay = 0;
  AdamWStep(params, master_.As<float>() + offset, moment1_.As<float>() + offset, moment2_.As<float>() + offset,
            gradient_.As<float>() + offset, count, pool_);
}

absl::Status CpuTrainEngine::Update(const AdamWParams& params) {
  if (lora_ != nullptr) {
    Step(params, 0, size_, /*decay=*/true);  // A and B are matrices, every one
  } else {
    for (const ParamSpec& param : weights_.layout.params) Step(params, param.offset, param.size(), param.weight_decay);
  }
  return Refresh();
}

absl::Status CpuTrainEngine::Refresh() {
  if (lora_ != nullptr) return lora_->Merge(master_.As<float>(), &weights_);
  weights_.SetFromArena(master_.As<float>());
  return absl::OkStatus();
}

// A parameter at a time: the whole model in FP32 may not fit.
Tensor CpuTrainEngine::RowsOf(int param, std::vector<float>* values) const {
  const ParamSpec& spec = weights_.layout.params[param];
  values->resize(spec.size());
  return Tensor(values->data(), DType::kF32, spec.rows, spec.cols);
}

absl::Status CpuTrainEngine::CaptureReference() {
  reference_ = std::make_unique<Weights>(options_.config, options_.dtype);
  std::vector<float> values;
  for (int param = 0; param < static_cast<int>(weights_.layout.params.size()); ++param) {
    const Tensor rows = RowsOf(param, &values);
    weights_.GetParamRows(param, 0, rows);
    reference_->SetParamRows(param, 0, rows);
  }
  return absl::OkStatus();
}

absl::Status CpuTrainEngine::BroadcastReference(Collectives* collectives, absl::Duration timeout) {
  const bool sends = collectives->rank() == 0;
  LOCKSTEP_CHECK(!sends || reference_ != nullptr, "rank 0 captures the reference before it is broadcast");
  if (!sends) reference_ = std::make_unique<Weights>(options_.config, options_.dtype);
  std::vector<float> values;
  for (int param = 0; param < static_cast<int>(weights_.layout.params.size()); ++param) {
    const Tensor rows = RowsOf(param, &values);
    if (sends) reference_->GetParamRows(param, 0, rows);
    absl::Status status = collectives->Broadcast(values.data(), static_cast<int64_t>(values.size()), timeout);
    if (!status.ok()) return status;
    if (!sends) reference_->SetParamRows(param, 0, rows);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<TrainEngine>> MakeCpuTrainEngine(const TrainEngineOptions& options) {
  auto engine = std::make_unique<CpuTrainEngine>(options);
  if (absl::Status status = engine->Allocate(); !status.ok()) return status;
  return engine;
}

}  // namespace lockstep
