#include "learner/cuda_train_engine.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/device_optimizer.h"
#include "engine/cuda/device_weights.h"
#include "engine/cuda/wire_image.h"
#include "weight_sync/device_params.h"

namespace lockstep {
namespace {

// Floats of a reference's arena that are broadcast at a time.
constexpr int64_t kBroadcastPiece = int64_t{8} << 20;

class CudaTrainEngine final : public TrainEngine, private DeviceParams {
 public:
  CudaTrainEngine(const TrainEngineOptions& options, cuda::OwnedGemm gemm)
      : options_(options), gemm_(std::move(gemm)) {}
  absl::Status Create();

  absl::Status Forward(Policy policy, const PackedBatch& batch, float temperature, float* log_prob, float* entropy,
                       RoutingTrace* trace) override;
  absl::Status Backward(const PackedBatch& batch, float temperature, const float* coefficient) override;
  absl::Status ZeroGradients() override;
  absl::Status AllReduceGradients(Collectives* collectives, absl::Duration timeout) override;
  absl::StatusOr<double> GradientNorm(double scale, double limit) override;
  absl::Status Update(const AdamWParams& params) override;

  absl::Status CaptureReference() override;
  bool has_reference() const override { return reference_.has_value(); }
  absl::Status BroadcastReference(Collectives* collectives, absl::Duration timeout) override;

  int64_t size() const override { return size_; }
  float* masters() override { return HostArena(masters_); }
  float* moment1() override { return HostArena(moment1_); }
  float* moment2() override { return HostArena(moment2_); }
  const float* gradients() override { return HostArena(gradients_); }
  absl::Status Fetch(TrainArrays what) override;
  absl::Status Store(TrainArrays what) override;
  ParamSource params() const override {
    return lora_ == nullptr ? ParamSource(masters_.As<float>()) : ParamSource(merged_.get());
  }
  const DeviceParams* device_params() const override { return this; }
  const LoraBase* lora() const override { return lora_.get(); }

 private:
  absl::Status WriteImage(const BucketPlan& plan, void* image) const override;
  absl::Status CreateLora();
  // Memory of the host that nothing has asked for yet is not there.
  float* HostArena(Buffer& arena) {
    if (arena.bytes() == 0) arena = Buffer(static_cast<size_t>(size_) * sizeof(float));
    return arena.As<float>();
  }
  // A state arena of the device to the host's order, and back.
  absl::Status ToHost(const float* device, float* host);
  absl::Status ToDevice(const float* host, float* device);
  // The compute copy from the masters: of the device, or with LoRA of the host.
  absl::Status Refresh();
  absl::Status Merge();

  const TrainEngineOptions options_;
  const cuda::OwnedGemm gemm_;
  cuda::Stream stream_;
  std::optional<cuda::Staging> staging_;
  std::optional<cuda::DeviceWeights> weights_;
  std::optional<cuda::DeviceWeights> reference_;  // none without a KL penalty
  std::unique_ptr<cuda::DeviceDecoder> decoder_;
  std::optional<cuda::DeviceOptimizer> optimizer_;
  std::unique_ptr<LoraBase> lora_;   // null: all parameters are trained
  std::unique_ptr<Weights> merged_;  // LoRA: the host's
  int64_t size_ = 0;                 // elements that are trained
  Buffer masters_, moment1_, moment2_, gradients_;
};

absl::Status CudaTrainEngine::CreateLora() {
  merged_ = std::make_unique<Weights>(options_.config, options_.dtype);
  auto lora = LoraBase::Load(options_.lora, options_.threads, merged_.get());
  if (!lora.ok()) return lora.status();
  lora_ = *std::move(lora);
  size_ = lora_->layout().total_size;
  absl::Status status = weights_->Load(merged_.get(), stream_, *staging_);
  if (!status.ok()) return status;
  auto optimizer = cuda::DeviceOptimizer::Create(size_, {{0, size_, /*decay=*/true}}, stream_);
  if (!optimizer.ok()) return optimizer.status();
  optimizer_ = *std::move(optimizer);
  return absl::OkStatus();
}

absl::Status CudaTrainEngine::Create() {
  auto stream = cuda::Stream::Create();
  if (!stream.ok()) return stream.status();
  stream_ = *std::move(stream);
  auto staging = cuda::Staging::Create();
  if (!staging.ok()) return staging.status();
  staging_ = *std::move(staging);
  // No paged pass is made: rows of one.
  const cuda::PagedLimits no_paging = {.rows = 1, .decode_rows = 1, .max_position = 0};
  auto decoder = cuda::DeviceDecoder::Create(options_.config, options_.dtype, options_.numerics, no_paging,
                                             gemm_.gemm.get(), &stream_);
  if (!decoder.ok()) return decoder.status();
  decoder_ = *std::move(decoder);
  auto weights = cuda::DeviceWeights::Allocate(options_.config, options_.dtype, stream_);
  if (!weights.ok()) return weights.status();
  weights_ = *std::move(weights);
  if (options_.lora.config.rank() > 0) return CreateLora();
  const cuda::ArenaLayout& layout = weights_->layout();
  size_ = layout.params.total_size;
  auto optimizer = cuda::DeviceOptimizer::Create(layout.size, cuda::DecayRanges(layout), stream_);
  if (!optimizer.ok()) return optimizer.status();
  optimizer_ = *std::move(optimizer);
  return absl::OkStatus();
}

absl::Status CudaTrainEngine::Forward(Policy policy, const PackedBatch& batch, float temperature, float* log_prob,
                                      float* entropy, RoutingTrace* trace) {
  const bool trained = policy == Policy::kTrained;
  LOCKSTEP_CHECK(trained || reference_.has_value(), "CaptureReference comes before a pass of the reference");
  const bool recompute = options_.recompute || entropy == nullptr;
  return decoder_->ForwardPacked(trained ? *weights_ : *reference_, batch, temperature, recompute, log_prob, entropy,
                                 trace);
}

absl::Status CudaTrainEngine::Backward(const PackedBatch& batch, float, const float* coefficient) {
  if (lora_ == nullptr) return decoder_->Backward(*weights_, batch, coefficient, optimizer_->gradient());
  const cuda::DeviceLowRankGradients gradients = {&lora_->layout(), optimizer_->master(), optimizer_->gradient()};
  return decoder_->Backward(*weights_, batch, coefficient, gradients);
}

absl::Status CudaTrainEngine::ZeroGradients() {
  const size_t bytes = static_cast<size_t>(optimizer_->size()) * sizeof(float);
  return cuda::CudaStatus(cudaMemsetAsync(optimizer_->gradient(), 0, bytes, stream_.get()), "clearing the gradient");
}

absl::Status CudaTrainEngine::AllReduceGradients(Collectives* collectives, absl::Duration timeout) {
  if (collectives->world_size() == 1) return absl::OkStatus();
  if (absl::Status status = stream_.Wait("the backward pass"); !status.ok()) return status;
  if (collectives->takes_device_memory()) {
    return collectives->AllReduceSum(optimizer_->gradient(), optimizer_->size(), timeout);
  }
  float* const host = HostArena(gradients_);
  if (absl::Status status = ToHost(optimizer_->gradient(), host); !status.ok()) return status;
  if (absl::Status status = collectives->AllReduceSum(host, size_, timeout); !status.ok()) return status;
  return ToDevice(host, optimizer_->gradient());
}

absl::StatusOr<double> CudaTrainEngine::GradientNorm(double scale, double limit) {
  if (absl::Status status = optimizer_->Norm(scale, limit, stream_); !status.ok()) return status;
  const auto control = optimizer_->ReadControl(stream_);
  if (!control.ok()) return control.status();
  return control->finite != 0 ? control->norm : std::numeric_limits<double>::infinity();
}

absl::Status CudaTrainEngine::Update(const AdamWParams& params) {
  if (lora_ == nullptr) return optimizer_->Step(params, options_.dtype, weights_->arena(), stream_);
  absl::Status status = optimizer_->Step(params, options_.dtype, /*copy=*/nullptr, stream_);
  if (status.ok()) status = ToHost(optimizer_->master(), masters());
  if (!status.ok()) return status;
  return Merge();
}

absl::Status CudaTrainEngine::Merge() {
  if (absl::Status status = lora_->Merge(masters(), merged_.get()); !status.ok()) return status;
  absl::Status status = weights_->Load(merged_.get(), stream_, *staging_);
  if (!status.ok()) return status;
  return stream_.Wait("bringing merged weights to the device");  // `merged_` may change again
}

absl::Status CudaTrainEngine::Refresh() {
  return lora_ == nullptr ? weights_->LoadFromMaster(optimizer_->master(), stream_) : Merge();
}

absl::Status CudaTrainEngine::ToHost(const float* device, float* host) {
  if (lora_ == nullptr) {
    return cuda::StoreArena(weights_->layout(), DType::kF32, device, host, stream_, *staging_);
  }
  return staging_->ToHost(stream_, device, static_cast<size_t>(size_) * sizeof(float), sizeof(float),
                          [host](size_t offset, size_t count, const void* from) {
                            std::memcpy(reinterpret_cast<char*>(host) + offset, from, count);
                          });
}

absl::Status CudaTrainEngine::ToDevice(const float* host, float* device) {
  absl::Status status;
  if (lora_ == nullptr) {
    status = cuda::LoadArena(weights_->layout(), ParamSource(host), DType::kF32, device, stream_, *staging_);
  } else {
    status = staging_->ToDevice(stream_, device, static_cast<size_t>(size_) * sizeof(float), sizeof(float),
                                [host](size_t offset, size_t count, void* to) {
                                  std::memcpy(to, reinterpret_cast<const char*>(host) + offset, count);
                                });
  }
  if (!status.ok()) return status;
  return stream_.Wait("bringing state to the device");
}

absl::Status CudaTrainEngine::Fetch(TrainArrays what) {
  if (what == TrainArrays::kGradients) return ToHost(optimizer_->gradient(), HostArena(gradients_));
  absl::Status status = ToHost(optimizer_->master(), masters());
  if (what == TrainArrays::kMasters || !status.ok()) return status;
  status = ToHost(optimizer_->moment1(), moment1());
  if (!status.ok()) return status;
  return ToHost(optimizer_->moment2(), moment2());
}

absl::Status CudaTrainEngine::Store(TrainArrays what) {
  LOCKSTEP_CHECK(what != TrainArrays::kGradients, "gradients are computed");
  absl::Status status = ToDevice(masters(), optimizer_->master());
  if (what == TrainArrays::kState) {
    if (status.ok()) status = ToDevice(moment1(), optimizer_->moment1());
    if (status.ok()) status = ToDevice(moment2(), optimizer_->moment2());
  }
  if (!status.ok()) return status;
  return Refresh();
}

// Of the masters, or with LoRA of the merged weights, which the compute copy has as the host does.
absl::Status CudaTrainEngine::WriteImage(const BucketPlan& plan, void* image) const {
  const cuda::WireMap map(weights_->layout());
  LOCKSTEP_CHECK(plan.total_bytes == static_cast<uint64_t>(map.elements()) * DTypeSize(plan.dtype),
                 "an update's plan is of this model");
  absl::Status status =
      lora_ == nullptr ? cuda::WriteImage(map.runs(), DType::kF32, optimizer_->master(), plan.dtype, image, stream_)
                       : cuda::WriteImage(map.runs(), options_.dtype, weights_->arena(), plan.dtype, image, stream_);
  return status.ok() ? stream_.Wait("rounding the weights for an update") : status;
}

absl::Status CudaTrainEngine::CaptureReference() {
  if (!reference_.has_value()) {
    auto reference = cuda::DeviceWeights::Allocate(options_.config, options_.dtype, stream_);
    if (!reference.ok()) return reference.status();
    reference_ = *std::move(reference);
  }
  const size_t bytes = static_cast<size_t>(weights_->layout().size) * DTypeSize(options_.dtype);
  return stream_.CopyOnDevice(reference_->arena(), weights_->arena(), bytes);
}

// The arena's bytes as they are, in pieces.
absl::Status CudaTrainEngine::BroadcastReference(Collectives* collectives, absl::Duration timeout) {
  const bool sends = collectives->rank() == 0;
  LOCKSTEP_CHECK(!sends || reference_.has_value(), "rank 0 captures the reference before it is broadcast");
  if (!sends) {
    if (absl::Status status = CaptureReference(); !status.ok()) return status;  // makes its memory
  }
  const int64_t bytes = weights_->layout().size * static_cast<int64_t>(DTypeSize(options_.dtype));
  static_assert(cuda::kArenaAlignment % 2 == 0, "an arena's bytes are whole floats");
  std::vector<float> piece(static_cast<size_t>(std::min(kBroadcastPiece, bytes / 4)));
  for (int64_t offset = 0; offset < bytes;) {
    const int64_t count = std::min<int64_t>(static_cast<int64_t>(piece.size()) * 4, bytes - offset);
    char* const device = static_cast<char*>(reference_->arena()) + offset;
    absl::Status status;
    if (sends) status = stream_.CopyToHost(piece.data(), device, static_cast<size_t>(count));
    if (status.ok()) status = stream_.Wait("reading the reference");
    if (status.ok()) status = collectives->Broadcast(piece.data(), count / 4, timeout);
    if (status.ok() && !sends) status = stream_.CopyToDevice(device, piece.data(), static_cast<size_t>(count));
    if (!status.ok()) return status;
    offset += count;
  }
  return stream_.Wait("writing the reference");
}

}  // namespace

absl::StatusOr<std::unique_ptr<TrainEngine>> MakeCudaTrainEngine(const TrainEngineOptions& options,
                                                                 cuda::OwnedGemm gemm) {
  auto engine = std::make_unique<CudaTrainEngine>(options, std::move(gemm));
  if (absl::Status status = engine->Create(); !status.ok()) return status;
  return engine;
}

}  // namespace lockstep
