// The mixture of experts of a layer, both ways: engine/model/decoder_experts.cc with all experts in one call each,
// since only the device knows how many slots an expert has.
#include "engine/cuda/device_decoder_impl.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/rows.h"

namespace lockstep::cuda {

void DeviceDecoder::Impl::CarveExperts(int64_t tokens, Carver& carver, ExpertTensors& tensors) const {
  const int64_t T = tokens, N = config.num_experts, P = T * config.experts_per_token;
  tensors.router_logits = carver.Take(DType::kF32, T, N);
  tensors.weights = carver.TakeArray<float>(P);
  tensors.slots = carver.TakeArray<int32_t>(P);
  tensors.slot_tokens = carver.TakeArray<int32_t>(P);
  tensors.slot_weights = carver.TakeArray<float>(P);
  tensors.offsets = carver.TakeArray<int32_t>(N + 1);
  tensors.gate_up = carver.Take(dtype, P, 2 * config.moe_intermediate_size);
}

RoutingPlace DeviceDecoder::Impl::PlaceOf(int64_t layer) const {
  const auto id_bytes = static_cast<int64_t>(routing_shape.id_bytes());
  return {.row_bytes = static_cast<int64_t>(routing_shape.row_bytes()),
          .layer_offset = expert_layer[static_cast<size_t>(layer)] * routing_shape.top_k * id_bytes,
          .id_bytes = id_bytes};
}

void DeviceDecoder::Impl::Route(Calls& run, int64_t layer, const ExpertTensors& tensors, int64_t tokens) {
  const ExpertTensors& x = tensors;
  const int64_t K = config.experts_per_token;
  const bool normalize = config.norm_topk_prob;
  if (!router.repeat) run(RouteTopK(x.router_logits, K, normalize, x.experts, x.weights, stream), "the router");
  if (router.given != nullptr) {
    run(TakeGivenExperts(router.given, router.has_given, PlaceOf(layer), tokens, K, router.replay, x.experts,
                         router.counts, stream),
        "the given experts");
  }
  if (router.repeat || (router.given != nullptr && router.replay)) {
    run(RouteGiven(x.router_logits, x.experts, K, normalize, x.weights, stream), "the given experts' weights");
  }
  if (router.record != nullptr) {
    run(RecordExperts(x.experts, tokens, K, PlaceOf(layer), router.record, stream), "the routing's record");
  }
}

void DeviceDecoder::Impl::RunExperts(Calls& run, const DeviceWeights& weights, int64_t layer,
                                     const LayerTensors& tensors, LayerExtent extent) {
  const DeviceLayerWeights& w = weights.layer(layer);
  const LayerTensors& t = tensors;
  const ExpertTensors& x = t.experts;
  const int64_t T = t.normed.rows, N = config.num_experts, K = config.experts_per_token;
  const ExpertRows experts = {x.offsets, N};
  run(gemm->Linear(t.normed, w.router, /*bias=*/{}, /*residual=*/{}, x.router_logits, stream), "the router");
  Route(run, layer, x, T);
  run(AssignSlots(x.experts, x.weights, T, K, N, x.slots, x.slot_tokens, x.slot_weights, x.offsets, stream),
      "the experts' slots");
  run(GatherRows(t.normed, x.slot_tokens, /*scale=*/nullptr, x.rows, stream), "the experts' rows");
  run(gemm->GroupedLinear(x.rows, w.expert_gate_up, experts, x.gate_up, stream), "the experts' gate projection");
  if (extent == LayerExtent::kThroughGateUp) return;
  run(SwiGlu(x.gate_up, x.activated, stream), "SwiGLU");
  run(gemm->GroupedLinear(x.activated, w.expert_down, experts, x.rows, stream), "the experts' down projection");
  run(CombineRows(x.rows, x.slots, K, x.weights, /*residual=*/t.middle, t.output, stream), "the experts' sum");
}

// With y_e the output of expert e before its weight, d w_e = <d_out, y_e>, and w_e d w_e = <down_e^T (w_e d_out),
// activated>: the backward pass needs neither y nor a division.
void DeviceDecoder::Impl::BackwardExperts(Calls& run, const DeviceWeights& weights, int64_t layer,
                                          const GradientSink& gradients) {
  const DeviceLayerWeights& w = weights.layer(layer);
  const ParamLayout::LayerParams& at = weights.layout().params.layers[static_cast<size_t>(layer)];
  const LayerTensors& t = training.layers[static_cast<size_t>(layer)];
  const ExpertTensors& x = t.experts;
  const ExpertGradients& d = training.d_experts;
  const int64_t T = t.normed.rows, N = config.num_experts, K = config.experts_per_token;
  const ExpertRows experts = {x.offsets, N};
  const auto all_experts = [&](int first) {
    return gradients.layout->ViewExperts(first, N, gradients.arena, DType::kF32);
  };
  const bool full = gradients.arena != nullptr;  // adapters have none in experts

  run(SwiGlu(x.gate_up, x.activated, stream), "SwiGLU");
  run(GatherRows(training.d_stream, x.slot_tokens, x.slot_weights, d.d_rows, stream), "gradient of the experts' rows");
  if (full) {
    run(gemm->GroupedLinearBackwardWeight(d.d_rows, x.activated, experts, all_experts(at.expert_down(0)), stream),
        "gradient of the experts' down projection");
  }
  run(gemm->GroupedLinearBackwardInput(d.d_rows, w.expert_down, experts, d.d_activated, /*accumulate=*/false, stream),
      "gradient of the experts' activations");
  run(RowDots(d.d_activated, x.activated, x.slots, T * K, d.products, stream), "gradient of the experts' weights");
  run(SwiGluBackward(d.d_activated, x.gate_up, d.d_gate_up, stream), "gradient of SwiGLU");

  run(RmsNorm(t.middle, {}, w.post_norm, config.rms_norm_eps, {}, t.normed, t.post_rstd, stream), "the MLP's norm");
  run(GatherRows(t.normed, x.slot_tokens, /*scale=*/nullptr, x.rows, stream), "the experts' rows");
  if (full) {
    run(gemm->GroupedLinearBackwardWeight(d.d_gate_up, x.rows, experts, all_experts(at.expert_gate_up(0)), stream),
        "gradient of the experts' gate projection");
  }
  run(gemm->GroupedLinearBackwardInput(d.d_gate_up, w.expert_gate_up, experts, d.d_rows, /*accumulate=*/false, stream),
      "gradient of the experts' rows");
  run(CombineRows(d.d_rows, x.slots, K, /*weights=*/nullptr, /*residual=*/{}, training.d_normed, stream),
      "gradient of the experts' input");

  run(RouteTopKBackward(x.router_logits, x.experts, K, config.norm_topk_prob, d.products, d.d_router_logits, stream),
      "gradient of the router");
  const Tensor& d_logits = d.d_router_stored;
  if (dtype != DType::kF32) {
    run(Convert(d.d_router_logits.As<float>(), T * N, dtype, d_logits.data, stream), "gradient of the router");
  }
  WeightGradient(run, gradients, at.router, d_logits, t.normed);
  run(gemm->LinearBackwardInput(d_logits, w.router, training.d_normed, /*accumulate=*/true, stream),
      "gradient of the router's input");
}

}  // namespace lockstep::cuda
