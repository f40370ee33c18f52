// The mixture of experts of a layer, both ways:
//   x += sum over the K chosen experts e of w_e down_e(silu(gate_e) * up_e),  gate_e, up_e = gate_up_e(rms_norm(x))
// with w from the router in FP32. Slots are rows sorted by expert, so that each expert is three operations on a range
// of them. A row's bits depend on its own token alone: the products are one chain a row, and a token's experts are
// added in ascending expert.
#include <algorithm>

#include "engine/base/check.h"
#include "engine/model/decoder_impl.h"

namespace lockstep {

void Decoder::Impl::CarveExperts(const ModelConfig& config, DType dtype, int64_t tokens, Carver& carver,
                                 ExpertTensors& tensors) {
  const int64_t T = tokens, N = config.num_experts, P = T * config.experts_per_token;
  const auto integers = [&](int64_t count) { return carver.Take(DType::kF32, 1, count).As<int32_t>(); };
  tensors.router_logits = carver.Take(DType::kF32, T, N);
  tensors.experts = integers(P);
  tensors.weights = carver.Take(DType::kF32, 1, P).As<float>();
  tensors.slots = integers(P);
  tensors.slot_tokens = integers(P);
  tensors.slot_weights = carver.Take(DType::kF32, 1, P).As<float>();
  tensors.offsets = integers(N + 1);
  tensors.gate_up = carver.Take(dtype, P, 2 * config.moe_intermediate_size);
}

void Decoder::Impl::AssignSlots(const ExpertTensors& tensors, int64_t tokens) const {
  const ExpertTensors& x = tensors;
  const int64_t N = config.num_experts, K = config.experts_per_token, P = tokens * K;
  std::fill(x.offsets, x.offsets + N + 1, 0);
  for (int64_t i = 0; i < P; ++i) ++x.offsets[x.experts[i] + 1];
  for (int64_t e = 0; e < N; ++e) x.offsets[e + 1] += x.offsets[e];
  for (int64_t i = 0; i < P; ++i) {
    const int32_t slot = x.offsets[x.experts[i]]++;
    x.slots[i] = slot;
    x.slot_tokens[slot] = static_cast<int32_t>(i / K);
    x.slot_weights[slot] = x.weights[i];
  }
  // Each offset has moved to its expert's end, which is where the next one began.
  for (int64_t e = N; e > 0; --e) x.offsets[e] = x.offsets[e - 1];
  x.offsets[0] = 0;
}

void Decoder::Impl::Route(int64_t layer, const ExpertTensors& tensors, int64_t tokens) {
  const ExpertTensors& x = tensors;
  const int64_t K = config.experts_per_token, at = expert_layer[layer];
  ops->RouteTopK(x.router_logits, K, config.norm_topk_prob, x.experts, x.weights);
  if (router.given != nullptr && !router.given->routing.empty()) TakeGivenExperts(at, x, tokens);
  if (router.record == nullptr) return;
  for (int64_t t = 0; t < tokens; ++t) {
    PutExperts(routing_shape, x.experts + t * K, at,
               router.record + static_cast<size_t>(t) * routing_shape.row_bytes());
  }
}

void Decoder::Impl::TakeGivenExperts(int64_t at, const ExpertTensors& tensors, int64_t tokens) {
  const ExpertTensors& x = tensors;
  const PackedBatch& given = *router.given;
  const int64_t K = config.experts_per_token;
  for (int64_t t = 0; t < tokens; ++t) {
    if (given.has_routing[t] == 0) continue;
    GetExperts(routing_shape, given.routing.data() + static_cast<size_t>(t) * routing_shape.row_bytes(), at,
               given_experts.data());
    if (router.trace != nullptr) {
      ++router.trace->choices;
      router.trace->differing += std::equal(given_experts.begin(), given_experts.end(), x.experts + t * K) ? 0 : 1;
    }
    if (given.replay_routing) std::copy(given_experts.begin(), given_experts.end(), x.experts + t * K);
  }
  if (!given.replay_routing) return;
  ops->RouteGiven(x.router_logits, {x.experts, static_cast<size_t>(tokens * K)}, config.norm_topk_prob, x.weights);
}

void Decoder::Impl::RunExperts(const Weights& all_weights, int64_t layer, const LayerTensors& tensors,
                               LayerExtent extent) {
  const LayerWeights& weights = all_weights.layers[layer];
  const LayerTensors& t = tensors;
  const ExpertTensors& x = t.experts;
  const int64_t T = t.normed.rows, P = T * config.experts_per_token;
  ops->Linear(t.normed, weights.router, /*bias=*/{}, /*residual=*/{}, x.router_logits);
  Route(layer, x, T);
  AssignSlots(x, T);
  ops->GatherRows(t.normed, {x.slot_tokens, static_cast<size_t>(P)}, /*scale=*/nullptr, x.rows);
  for (int64_t e = 0; e < config.num_experts; ++e) {
    const int64_t begin = x.offsets[e], count = x.offsets[e + 1] - begin;
    if (count == 0) continue;
    ops->Linear(x.rows.Rows(begin, count), weights.experts[e].gate_up, /*bias=*/{}, /*residual=*/{},
                x.gate_up.Rows(begin, count));
  }
  if (extent == LayerExtent::kThroughGateUp) return;
  ops->SwiGlu(x.gate_up, x.activated);
  for (int64_t e = 0; e < config.num_experts; ++e) {
    const int64_t begin = x.offsets[e], count = x.offsets[e + 1] - begin;
    if (count == 0) continue;
    ops->Linear(x.activated.Rows(begin, count), weights.experts[e].down, /*bias=*/{}, /*residual=*/{},
                x.rows.Rows(begin, count));
  }
  ops->CombineRows(x.rows, {x.slots, static_cast<size_t>(P)}, x.weights, /*residual=*/t.middle, t.output);
}

// With y_e the output of expert e before its weight, d w_e = <d_out, y_e>, and w_e d w_e = <down_e^T (w_e d_out),
// activated>: the backward pass needs neither y nor a division.
void Decoder::Impl::BackwardExperts(const Weights& weights, int64_t layer, const GradientSink& gradients) {
  const LayerWeights& w = weights.layers[layer];
  const ParamLayout::LayerParams& at = weights.layout.layers[layer];
  const LayerTensors& t = training.layers[layer];
  const ExpertTensors& x = t.experts;
  const ExpertGradients& d = training.d_experts;
  const int64_t N = config.num_experts, P = t.normed.rows * config.experts_per_token;
  const std::span<const int32_t> slot_tokens(x.slot_tokens, static_cast<size_t>(P));
  const std::span<const int32_t> slots(x.slots, static_cast<size_t>(P));

  ops->SwiGlu(x.gate_up, x.activated);
  ops->GatherRows(training.d_stream, slot_tokens, x.slot_weights, d.d_rows);
  for (int64_t e = 0; e < N; ++e) {
    const int64_t begin = x.offsets[e], count = x.offsets[e + 1] - begin;
    if (count == 0) continue;
    gradients.Weight(*ops, at.expert_down(e), d.d_rows.Rows(begin, count), x.activated.Rows(begin, count));
    ops->LinearBackwardInput(d.d_rows.Rows(begin, count), w.experts[e].down, d.d_activated.Rows(begin, count),
                             /*accumulate=*/false);
  }
  ops->RowDots(d.d_activated, x.activated, d.dots);
  for (int64_t i = 0; i < P; ++i) d.products[i] = d.dots[x.slots[i]];
  ops->SwiGluBackward(d.d_activated, x.gate_up, d.d_gate_up);

  ops->RmsNorm(t.middle, Vector(w.post_norm, config.hidden_size), config.rms_norm_eps, t.normed, t.post_rstd);
  ops->GatherRows(t.normed, slot_tokens, /*scale=*/nullptr, x.rows);
  for (int64_t e = 0; e < N; ++e) {
    const int64_t begin = x.offsets[e], count = x.offsets[e + 1] - begin;
    if (count == 0) continue;
    gradients.Weight(*ops, at.expert_gate_up(e), d.d_gate_up.Rows(begin, count), x.rows.Rows(begin, count));
    ops->LinearBackwardInput(d.d_gate_up.Rows(begin, count), w.experts[e].gate_up, d.d_rows.Rows(begin, count),
                             /*accumulate=*/false);
  }
  ops->CombineRows(d.d_rows, slots, /*weights=*/nullptr, /*residual=*/{}, training.d_normed);

  ops->RouteTopKBackward(x.router_logits, {x.experts, static_cast<size_t>(P)}, config.norm_topk_prob, d.products,
                         d.d_router_logits);
  gradients.Weight(*ops, at.router, d.d_router_logits, t.normed);
  ops->LinearBackwardInput(d.d_router_logits, w.router, training.d_normed, /*accumulate=*/true);
}

}  // namespace lockstep
