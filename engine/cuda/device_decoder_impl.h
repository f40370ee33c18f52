// Private to the device's decoder: what one forward call holds besides engine/model/layer_tensors.h, and the layer that
// paged and packed forward share. The names and lifetimes are those of engine/model/decoder_impl.h.
#ifndef LOCKSTEP_ENGINE_CUDA_DEVICE_DECODER_IMPL_H_
#define LOCKSTEP_ENGINE_CUDA_DEVICE_DECODER_IMPL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/device_log_prob.h"
#include "engine/cuda/input_block.h"
#include "engine/kernels/cuda/attention.h"
#include "engine/kernels/cuda/moe.h"
#include "engine/model/layer_tensors.h"
#include "engine/model/routing.h"
#include "engine/tensor/carver.h"

namespace lockstep::cuda {

inline constexpr size_t kDeviceAlignment = 256;

// The gradients of ExpertTensors (whose `experts` every layer has for itself, with recompute too).
struct ExpertGradients {
  Tensor d_rows;              // [P, D]
  Tensor d_activated;         // [P, M]
  Tensor d_gate_up;           // [P, 2M]
  Tensor d_router_logits;     // [T, N] FP32
  Tensor d_router_stored;     // [T, N] in the storage dtype, in which it is multiplied
  float* products = nullptr;  // [T, K]
};

// A packed batch on the device, valid from ForwardPacked to its Backward.
struct PackedInputs {
  int64_t tokens = 0, loss_rows = 0, sequences = 0, max_length = 0, embedding_runs = 0;
  const int32_t* ids = nullptr;                // [T]
  const int32_t* positions = nullptr;          // [T]
  const int32_t* cu_seqlens = nullptr;         // [sequences + 1]
  const int32_t* rows = nullptr;               // [R] loss rows
  const int32_t* targets = nullptr;            // [R]
  const float* inverse_temperature = nullptr;  // [R]
  const int32_t* run_order = nullptr;          // EmbeddingRuns
  const int32_t* run_begin = nullptr;
  const uint8_t* given_routing = nullptr;  // [T, row_bytes], null: none
  const uint8_t* has_routing = nullptr;    // [T]
};

// What the routers of one call do.
struct RouterCall {
  // The experts are those that an earlier pass left in ExpertTensors::experts: a recomputed layer.
  bool repeat = false;
  const uint8_t* given = nullptr;      // [T, row_bytes]
  const uint8_t* has_given = nullptr;  // [T]
  bool replay = false;
  RoutingCounts* counts = nullptr;  // null: not counted
  uint8_t* record = nullptr;        // [T, row_bytes]; null: not wanted
};

// Where a backward pass puts its gradients: those of all parameters into an arena, or those of low-rank updates alone.
struct GradientSink {
  const ArenaLayout* layout = nullptr;
  float* arena = nullptr;
  DeviceLowRankGradients low_rank;
  float* low_rank_scratch = nullptr;

  Tensor Of(int param) const {
    return arena == nullptr || param < 0 ? Tensor() : layout->View(param, arena, DType::kF32);
  }
};

// Rotates q and k and fills tensors.attention.
using AttendFn = absl::FunctionRef<void(const QkvViews& qkv, const LayerTensors& tensors)>;

struct Training {
  std::vector<Tensor> streams;         // [L + 1] of [T, D]: streams[l] enters layer l
  std::vector<LayerTensors> layers;    // [L]; with recompute all but `input`, `output` and experts are shared
  Tensor loss_input;                   // [R, D] rows of streams[L] that have a loss
  Tensor loss_normed;                  // [R, D]
  float* loss_rstd = nullptr;          // [R]
  float* log_prob = nullptr;           // [R]
  float* entropy = nullptr;            // [R]
  float* loss_lse = nullptr;           // [R]
  const float* coefficient = nullptr;  // [R], of Backward
  LogProbScratch log_prob_scratch;
  uint8_t* record = nullptr;        // [T, row_bytes]
  RoutingCounts* counts = nullptr;  // [1]

  Tensor d_loss;     // [R, D]
  Tensor d_stream;   // [T, D]
  Tensor d_normed;   // [T, D]
  Tensor d_gate_up;  // [T, 2F], dead when attention's gradients are made: they lie over it and over d_experts
  ExpertGradients d_experts;
  Tensor d_attention;  // [T, H E]
  Tensor d_qkv;        // [T, (H + 2G) E]
  float* attention_scratch = nullptr;
  float* norm_scratch = nullptr;
};

struct DeviceDecoder::Impl {
  // What is known of a model without a device; the bytes of scratch come from it.
  Impl(const ModelConfig& config, DType dtype, Numerics numerics);

  // device_decoder.cc
  void RunLayer(Calls& run, const DeviceWeights& weights, int64_t layer, const LayerTensors& tensors, AttendFn attend,
                LayerExtent extent);
  void RunPackedLayer(Calls& run, const DeviceWeights& weights, int64_t layer, LayerExtent extent);
  LayerTensors CarvePaged(int64_t rows, Carver& carver) const;
  int64_t PagedScratchBytes(const PagedLimits& limits) const;
  void CheckWeights(const DeviceWeights& weights) const;
  Tensor RopeTable() const;

  // device_decoder_packed.cc
  absl::Status StagePacked(const PackedBatch& batch, float temperature);
  absl::Status ReadPacked(float* log_prob, float* entropy, RoutingTrace* trace);

  // device_decoder_experts.cc
  void CarveExperts(int64_t tokens, Carver& carver, ExpertTensors& tensors) const;
  void RunExperts(Calls& run, const DeviceWeights& weights, int64_t layer, const LayerTensors& tensors,
                  LayerExtent extent);
  void Route(Calls& run, int64_t layer, const ExpertTensors& tensors, int64_t tokens);
  void BackwardExperts(Calls& run, const DeviceWeights& weights, int64_t layer, const GradientSink& gradients);
  RoutingPlace PlaceOf(int64_t layer) const;

  // device_decoder_backward.cc
  void CarveTraining(int64_t tokens, int64_t loss_rows, bool recompute, Carver& carver, Training& training) const;
  absl::Status Backward(const DeviceWeights& weights, const PackedBatch& batch, const float* coefficient,
                        GradientSink gradients);
  void BackwardLoss(Calls& run, const DeviceWeights& weights, const GradientSink& gradients);
  void BackwardLayer(Calls& run, const DeviceWeights& weights, int64_t layer, const GradientSink& gradients);
  void BackwardMlp(Calls& run, const DeviceWeights& weights, int64_t layer, const GradientSink& gradients);
  void BackwardAttention(Calls& run, const DeviceWeights& weights, int64_t layer, const GradientSink& gradients);
  // The gradient of W (and of the bias) of x W^T + bias, or of the adapters of W.
  void WeightGradient(Calls& run, const GradientSink& gradients, int param, const Tensor& d_out, const Tensor& x,
                      int bias = -1);

  ModelConfig config;
  DType dtype;
  Numerics numerics;
  DeviceGemm* gemm = nullptr;
  const Stream* stream_owner = nullptr;
  cudaStream_t stream = nullptr;
  AttentionShape attention_shape;
  RoutingShape routing_shape;
  std::vector<int64_t> expert_layer;  // [L] number of layers with experts below it
  DeviceBuffer cos_sin;               // [max_position_embeddings, E] FP32

  PagedLimits limits;
  DeviceBuffer paged_block;
  LayerTensors paged;  // of limits.rows rows
  void* paged_scratch = nullptr;

  RouterCall router;  // of the call under way

  DeviceBuffer training_block;
  DeviceBuffer low_rank_block;
  Training training;
  InputBlock packed_block;
  PackedInputs packed;
  PinnedBuffer results;  // log_prob, entropy [R], counts, record
  InputBlock coefficients;
  int64_t forward_tokens = -1;  // of the last ForwardPacked; -1: none, or its Backward is done
  int64_t forward_loss_rows = -1;
  bool recompute = false;
  int64_t computed_layer = -1;  // recompute: whose tensors the shared slot holds
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_DEVICE_DECODER_IMPL_H_
