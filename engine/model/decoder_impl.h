// Private to the decoder: what one forward call holds, and the layer that paged and packed forward share.
#ifndef LOCKSTEP_ENGINE_MODEL_DECODER_IMPL_H_
#define LOCKSTEP_ENGINE_MODEL_DECODER_IMPL_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/model/decoder.h"
#include "engine/model/layer_tensors.h"
#include "engine/model/routing.h"
#include "engine/tensor/carver.h"

namespace lockstep {

// The gradients of ExpertTensors.
struct ExpertGradients {
  Tensor d_rows;              // [P, D]
  Tensor d_activated;         // [P, M]
  Tensor d_gate_up;           // [P, 2M]
  Tensor d_router_logits;     // [T, N] FP32
  float* dots = nullptr;      // [P]
  float* products = nullptr;  // [T, K]
};

// Where a backward pass puts its gradients: those of all parameters into an arena, or those of low-rank updates alone.
class GradientSink {
 public:
  GradientSink(const ParamLayout& layout, GradientArena arena) : layout_(layout), arena_(arena) {}
  GradientSink(const ParamLayout& layout, const LowRankGradients& low_rank) : layout_(layout), low_rank_(low_rank) {}

  // View of a parameter's gradient in the arena; null-data when the model has no such parameter (-1), or it is frozen.
  Tensor Of(int param) const {
    if (param < 0 || arena_ == nullptr) return Tensor();
    const ParamSpec& spec = layout_.params[param];
    return Tensor(arena_ + spec.offset, DType::kF32, spec.rows, spec.cols);
  }
  // The gradient of W (and of the bias) of x W^T + bias, or of the adapters of W.
  void Weight(Ops& ops, int param, const Tensor& d_out, const Tensor& x, int bias = -1) const;

 private:
  const ParamLayout& layout_;
  GradientArena arena_ = nullptr;
  LowRankGradients low_rank_;
};

// What the routers of one call are given, and what is wanted of them. Null pointers: nothing.
struct RouterCall {
  const PackedBatch* given = nullptr;
  char* record = nullptr;         // [T, row_bytes]
  RoutingTrace* trace = nullptr;  // its counts alone
};

using AttendFn = absl::FunctionRef<void(const QkvViews& qkv, const LayerTensors& tensors)>;

struct Decoder::Impl {
  Impl(const ModelConfig& config, DType dtype, Ops* ops);

  // Layer `layer`, for every caller. `attend` fills tensors.attention from q, k, v.
  void RunLayer(const Weights& weights, int64_t layer, const LayerTensors& tensors, std::span<const int32_t> positions,
                AttendFn attend, LayerExtent extent);
  // Its second half where the layer has experts: t.output = t.middle + experts(t.normed).
  void RunExperts(const Weights& weights, int64_t layer, const LayerTensors& tensors, LayerExtent extent);
  // The experts of each token and their weights from the router's logits, as `router` has it.
  void Route(int64_t layer, const ExpertTensors& tensors, int64_t tokens);
  // Counts where the given experts differ from the chosen ones, and with replay puts them in their place.
  void TakeGivenExperts(int64_t expert_layer, const ExpertTensors& tensors, int64_t tokens);
  // Sorts the pairs of experts [T, K] into slots.
  void AssignSlots(const ExpertTensors& tensors, int64_t tokens) const;
  // Runs layer `layer` of the packed batch from its input.
  void RunPackedLayer(const Weights& weights, int64_t layer, std::span<const int32_t> cu_seqlens, LayerExtent extent);
  void Backward(const Weights& weights, const PackedBatch& batch, float temperature, const float* coefficient,
                const GradientSink& gradients);
  void BackwardLayer(const Weights& weights, int64_t layer, std::span<const int32_t> cu_seqlens,
                     const GradientSink& gradients);
  // The transpose of the second half: from d_stream to training.d_normed, which is the gradient of t.normed. t.normed
  // is computed again.
  void BackwardMlp(const Weights& weights, int64_t layer, const GradientSink& gradients);
  void BackwardExperts(const Weights& weights, int64_t layer, const GradientSink& gradients);

  Tensor RopeTable() const;
  // [1, cols] view of a norm weight or bias; null-data when the buffer is empty.
  Tensor Vector(const Buffer& buffer, int64_t cols) const;
  void CheckTokens(std::span<const int32_t> tokens, const Weights& weights) const;

  ModelConfig config;
  DType dtype;
  Ops* ops;
  AttentionShape attention_shape;
  Buffer cos_sin;  // [max_position_embeddings, E] FP32

  RoutingShape routing_shape;
  std::vector<int64_t> expert_layer;   // [L] number of layers with experts below it
  std::vector<int32_t> given_experts;  // [K] scratch
  RouterCall router;                   // of the call under way

  Buffer paged_block;

  // Training state: laid out by CarveTraining, valid from ForwardPacked to the Backward of the same batch.
  struct Training {
    std::vector<Tensor> streams;       // [L + 1] of [T, D]: streams[l] enters layer l
    std::vector<LayerTensors> layers;  // [L]; with recompute all but `input` and `output` are shared
    Tensor loss_input;                 // [R, D] rows of streams[L] that have a loss
    Tensor loss_normed;                // [R, D]
    float* loss_rstd = nullptr;        // [R]
    float* loss_lse = nullptr;         // [R]

    Tensor d_loss;     // [R, D]
    Tensor d_stream;   // [T, D]
    Tensor d_normed;   // [T, D]
    Tensor d_gate_up;  // [T, 2F], dead when attention's gradients are made: they lie over it and over d_experts
    ExpertGradients d_experts;
    Tensor d_attention;  // [T, H E]
    Tensor d_qkv;        // [T, (H + 2G) E]
  };
  static void CarveExperts(const ModelConfig& config, DType dtype, int64_t tokens, Carver& carver,
                           ExpertTensors& tensors);
  static void CarveTraining(const ModelConfig& config, DType dtype, int64_t tokens, int64_t loss_rows, bool recompute,
                            Carver& carver, Training& training);
  Buffer training_block;
  Training training;
  std::vector<int32_t> positions;  // [T] of the packed batch
  int64_t forward_tokens = -1;     // T and R of the last ForwardPacked; -1: none, or its Backward is done
  int64_t forward_loss_rows = -1;
  bool recompute = false;
  int64_t computed_layer = -1;  // recompute: whose tensors the shared slot holds
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_DECODER_IMPL_H_
