// What a layer of a decoder holds and how its projections are cut, for every decoder: engine/model's and engine/cuda's.
#ifndef LOCKSTEP_ENGINE_MODEL_LAYER_TENSORS_H_
#define LOCKSTEP_ENGINE_MODEL_LAYER_TENSORS_H_

#include <cstdint>
#include <vector>

#include "engine/kernels/contract.h"
#include "engine/model/model.h"
#include "engine/tensor/tensor_view.h"

namespace lockstep {

// The tensors of a layer with experts, on P = T K slots: pairs of a token and one of its experts, sorted by expert and
// within one by token. The first group is kept for the backward pass, the second is scratch.
struct ExpertTensors {
  Tensor router_logits;            // [T, N] FP32
  int32_t* experts = nullptr;      // [T, K]
  float* weights = nullptr;        // [T, K]
  int32_t* slots = nullptr;        // [T, K] slot of each pair
  int32_t* slot_tokens = nullptr;  // [P] token of each slot
  float* slot_weights = nullptr;   // [P]
  int32_t* offsets = nullptr;      // [N + 1] expert e has slots [offsets[e], offsets[e + 1])
  Tensor gate_up;                  // [P, 2M]

  Tensor rows;       // [P, D] what the experts read; in the forward pass then what they wrote
  Tensor activated;  // [P, M]
};

// The tensors of one layer on T tokens. Training keeps those of the first group for every layer (or, with recompute,
// for one layer at a time); the second group is scratch that the backward pass computes again, since it is cheap.
struct LayerTensors {
  Tensor input;                 // [T, D] residual stream
  Tensor qkv;                   // [T, (H + 2G) E]; q and k rotated where qk is not a tensor of its own
  Tensor qk;                    // [T, (H + G) E] q and k normed and rotated; without q/k norms a view of qkv
  Tensor attention;             // [T, H E]
  Tensor lse;                   // [T, H] FP32, packed only
  Tensor middle;                // [T, D] residual stream after attention
  Tensor gate_up;               // [T, 2F], of a layer without experts
  ExpertTensors experts;        // of a layer with experts
  Tensor output;                // [T, D] residual stream
  float* input_rstd = nullptr;  // [T], packed only
  float* post_rstd = nullptr;   // [T], packed only
  float* q_rstd = nullptr;      // [T, H] and [T, G], packed with q/k norms only
  float* k_rstd = nullptr;

  Tensor normed;     // [T, D]
  Tensor activated;  // [T, F]
};

// Column views of a fused [T, (H + 2G) E] tensor (q and k possibly of another).
struct QkvViews {
  Tensor q, k, v;
};

// How much of a layer to run: the backward pass of a recomputed layer does not need the layer's output.
enum class LayerExtent { kThroughGateUp, kThroughOutput };

QkvViews SplitQkv(const ModelConfig& config, const Tensor& qkv);
// What attention sees: q and k of tensors.qk, v of tensors.qkv.
QkvViews AttentionInputs(const ModelConfig& config, const LayerTensors& tensors);

// With the usual scale, 1/sqrt(E).
AttentionShape AttentionShapeOf(const ModelConfig& config);
// [L] number of layers with experts below each.
std::vector<int64_t> ExpertLayersBelow(const ModelConfig& config);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_LAYER_TENSORS_H_
