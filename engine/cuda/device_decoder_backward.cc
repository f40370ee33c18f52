// The transposed walk: engine/model/decoder_backward.cc over the device's launchers. Activation gradients are stored in
// the activation dtype, parameter gradients are added in FP32.
#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/base/check.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/device_decoder_impl.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/low_rank.h"
#include "engine/kernels/cuda/rows.h"

namespace lockstep::cuda {
namespace {

bool AnyLayer(const ModelConfig& config, bool experts) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (config.HasExperts(layer) == experts) return true;
  }
  return false;
}

}  // namespace

void DeviceDecoder::Impl::CarveTraining(int64_t tokens, int64_t loss_rows, bool recompute, Carver& carver,
                                        Training& training) const {
  const int64_t T = tokens, R = loss_rows, L = config.num_layers, D = config.hidden_size;
  const int64_t F = config.intermediate_size, query_cols = config.num_heads * config.head_dim;
  const int64_t P = T * config.experts_per_token, M = config.moe_intermediate_size;
  Training& t = training;
  t.streams.resize(static_cast<size_t>(L) + 1);
  t.layers.resize(static_cast<size_t>(L));
  for (Tensor& stream : t.streams) stream = carver.Take(dtype, T, D);
  const Tensor normed = carver.Take(dtype, T, D), activated = carver.Take(dtype, T, F);
  const Tensor expert_rows = carver.Take(dtype, P, D), expert_activated = carver.Take(dtype, P, M);
  for (int64_t layer = 0; layer < L; ++layer) {
    LayerTensors& kept = t.layers[static_cast<size_t>(layer)];
    kept = {};
    if (recompute && layer > 0) {
      kept = t.layers.front();
    } else {
      kept.qkv = carver.Take(dtype, T, config.qkv_rows());
      kept.qk = kept.qkv;
      if (config.qk_norm) {
        kept.qk = carver.Take(dtype, T, query_cols + config.num_kv_heads * config.head_dim);
        kept.q_rstd = carver.TakeArray<float>(T * config.num_heads);
        kept.k_rstd = carver.TakeArray<float>(T * config.num_kv_heads);
      }
      kept.attention = carver.Take(dtype, T, query_cols);
      kept.lse = carver.Take(DType::kF32, T, config.num_heads);
      kept.middle = carver.Take(dtype, T, D);
      // The one slot of recomputed layers serves both kinds.
      if (recompute ? AnyLayer(config, false) : !config.HasExperts(layer)) kept.gate_up = carver.Take(dtype, T, 2 * F);
      if (recompute ? AnyLayer(config, true) : config.HasExperts(layer)) CarveExperts(T, carver, kept.experts);
      kept.input_rstd = carver.TakeArray<float>(T);
      kept.post_rstd = carver.TakeArray<float>(T);
    }
    kept.input = t.streams[static_cast<size_t>(layer)];
    kept.output = t.streams[static_cast<size_t>(layer) + 1];
    kept.normed = normed;
    kept.activated = activated;
    kept.experts.rows = expert_rows;
    kept.experts.activated = expert_activated;
    if (config.HasExperts(layer)) kept.experts.experts = carver.TakeArray<int32_t>(P);
  }
  t.loss_input = carver.Take(dtype, R, D);
  t.loss_normed = carver.Take(dtype, R, D);
  for (float** array : {&t.loss_rstd, &t.log_prob, &t.entropy, &t.loss_lse}) {
    *array = carver.TakeArray<float>(R);
  }
  t.log_prob_scratch = CarveLogProb(dtype, R, D, config.vocab_size, carver);
  t.record = carver.TakeArray<uint8_t>(T * static_cast<int64_t>(routing_shape.row_bytes()));
  t.counts = carver.TakeArray<RoutingCounts>(1);

  t.d_stream = carver.Take(dtype, T, D);
  t.d_normed = carver.Take(dtype, T, D);
  t.norm_scratch = carver.TakeArray<float>(std::max(
      {RmsNormBackwardScratch(T, D), RmsNormBackwardScratch(R, D), RmsNormBackwardScratch(T, config.head_dim)}));
  const size_t shared = carver.Mark();
  t.d_loss = carver.Take(dtype, R, D);
  carver.Rewind(shared);
  t.d_gate_up = carver.Take(dtype, T, 2 * F);
  carver.Rewind(shared);
  t.d_experts.d_rows = carver.Take(dtype, P, D);
  t.d_experts.d_activated = carver.Take(dtype, P, M);
  t.d_experts.d_gate_up = carver.Take(dtype, P, 2 * M);
  t.d_experts.d_router_logits = carver.Take(DType::kF32, T, config.num_experts);
  t.d_experts.d_router_stored =
      dtype == DType::kF32 ? t.d_experts.d_router_logits : carver.Take(dtype, T, config.num_experts);
  t.d_experts.products = carver.TakeArray<float>(P);
  carver.Rewind(shared);
  t.d_attention = carver.Take(dtype, T, query_cols);
  t.d_qkv = carver.Take(dtype, T, config.qkv_rows());
  t.attention_scratch = carver.TakeArray<float>(AttentionBackwardScratch(attention_shape, T));
}

void DeviceDecoder::Impl::WeightGradient(Calls& run, const GradientSink& gradients, int param, const Tensor& d_out,
                                         const Tensor& x, int bias) {
  if (gradients.arena != nullptr) {
    run(gemm->LinearBackwardWeight(d_out, x, gradients.Of(param), gradients.Of(bias), stream), "gradient of a weight");
    return;
  }
  const LowRankLayout& layout = *gradients.low_rank.layout;
  for (const int index : layout.of_param[static_cast<size_t>(param)]) {
    const LowRankAdapter& adapter = layout.adapters[static_cast<size_t>(index)];
    // The arena of the adapters' values is only read.
    float* const values = const_cast<float*>(gradients.low_rank.adapters);
    float* const to = gradients.low_rank.gradients;
    run(LowRankBackward(d_out.Cols(adapter.row_begin, adapter.rows), x, layout.A(adapter, values),
                        layout.B(adapter, values), layout.scale, layout.A(adapter, to), layout.B(adapter, to),
                        gradients.low_rank_scratch, stream),
        "gradient of an adapter");
  }
}

// x += down(silu(gate) * up). The product is dead once d_down has it, so its gradient takes its place.
void DeviceDecoder::Impl::BackwardMlp(Calls& run, const DeviceWeights& weights, int64_t layer,
                                      const GradientSink& gradients) {
  const DeviceLayerWeights& w = weights.layer(layer);
  const ParamLayout::LayerParams& at = weights.layout().params.layers[static_cast<size_t>(layer)];
  const LayerTensors& t = training.layers[static_cast<size_t>(layer)];
  run(SwiGlu(t.gate_up, t.activated, stream), "SwiGLU");
  WeightGradient(run, gradients, at.down, training.d_stream, t.activated);
  const Tensor& d_activated = t.activated;
  run(gemm->LinearBackwardInput(training.d_stream, w.down, d_activated, /*accumulate=*/false, stream),
      "gradient of the MLP's activations");
  run(SwiGluBackward(d_activated, t.gate_up, training.d_gate_up, stream), "gradient of SwiGLU");
  run(RmsNorm(t.middle, {}, w.post_norm, config.rms_norm_eps, {}, t.normed, t.post_rstd, stream), "the MLP's norm");
  WeightGradient(run, gradients, at.gate_up, training.d_gate_up, t.normed);
  run(gemm->LinearBackwardInput(training.d_gate_up, w.gate_up, training.d_normed, /*accumulate=*/false, stream),
      "gradient of the MLP's input");
}

// x += o(attention(rope(q), rope(k), v))
void DeviceDecoder::Impl::BackwardAttention(Calls& run, const DeviceWeights& weights, int64_t layer,
                                            const GradientSink& gradients) {
  const DeviceLayerWeights& w = weights.layer(layer);
  const ParamLayout::LayerParams& at = weights.layout().params.layers[static_cast<size_t>(layer)];
  const LayerTensors& t = training.layers[static_cast<size_t>(layer)];
  const int64_t E = config.head_dim;
  const QkvViews qkv = AttentionInputs(config, t), d_qkv = SplitQkv(config, training.d_qkv);
  WeightGradient(run, gradients, at.o, training.d_stream, t.attention);
  run(gemm->LinearBackwardInput(training.d_stream, w.o, training.d_attention, /*accumulate=*/false, stream),
      "gradient of attention's output");
  run(AttentionPackedBackward(attention_shape, training.d_attention, qkv.q, qkv.k, qkv.v, t.attention, t.lse,
                              packed.cu_seqlens, packed.sequences, packed.max_length, numerics, d_qkv.q, d_qkv.k,
                              d_qkv.v, training.attention_scratch, stream),
      "gradient of attention");
  run(Rope(d_qkv.q, config.num_heads, E, packed.positions, RopeTable(), /*backward=*/true, stream), "rotation back");
  run(Rope(d_qkv.k, config.num_kv_heads, E, packed.positions, RopeTable(), /*backward=*/true, stream), "rotation back");
  if (config.qk_norm) {
    const QkvViews projected = SplitQkv(config, t.qkv);
    run(RmsNormBackward(d_qkv.q, projected.q, w.q_norm, t.q_rstd, /*d_residual=*/{}, d_qkv.q, gradients.Of(at.q_norm),
                        training.norm_scratch, stream),
        "gradient of the norm of queries");
    run(RmsNormBackward(d_qkv.k, projected.k, w.k_norm, t.k_rstd, /*d_residual=*/{}, d_qkv.k, gradients.Of(at.k_norm),
                        training.norm_scratch, stream),
        "gradient of the norm of keys");
  }
  run(RmsNorm(t.input, {}, w.input_norm, config.rms_norm_eps, {}, t.normed, t.input_rstd, stream), "attention's norm");
  WeightGradient(run, gradients, at.qkv, training.d_qkv, t.normed, at.qkv_bias);
  run(gemm->LinearBackwardInput(training.d_qkv, w.qkv, training.d_normed, /*accumulate=*/false, stream),
      "gradient of attention's input");
}

void DeviceDecoder::Impl::BackwardLayer(Calls& run, const DeviceWeights& weights, int64_t layer,
                                        const GradientSink& gradients) {
  const DeviceLayerWeights& w = weights.layer(layer);
  const ParamLayout::LayerParams& at = weights.layout().params.layers[static_cast<size_t>(layer)];
  if (recompute && computed_layer != layer) RunPackedLayer(run, weights, layer, LayerExtent::kThroughGateUp);
  const LayerTensors& t = training.layers[static_cast<size_t>(layer)];
  if (config.HasExperts(layer)) {
    BackwardExperts(run, weights, layer, gradients);
  } else {
    BackwardMlp(run, weights, layer, gradients);
  }
  const auto norm = [&](const Tensor& x, const Tensor& weight, const float* rstd, int param) {
    run(RmsNormBackward(training.d_normed, x, weight, rstd, /*d_residual=*/training.d_stream, training.d_stream,
                        gradients.Of(param), training.norm_scratch, stream),
        "gradient of a norm");
  };
  norm(t.middle, w.post_norm, t.post_rstd, at.post_norm);
  BackwardAttention(run, weights, layer, gradients);
  norm(t.input, w.input_norm, t.input_rstd, at.input_norm);
}

void DeviceDecoder::Impl::BackwardLoss(Calls& run, const DeviceWeights& weights, const GradientSink& gradients) {
  const ParamLayout& layout = weights.layout().params;
  const Training& t = training;
  LogProbBackward(run, *gemm, {t.loss_normed, packed.targets, packed.inverse_temperature}, weights.output(),
                  t.log_prob_scratch, t.coefficient, t.loss_lse, t.d_loss, gradients.Of(layout.output()), stream);
  run(RmsNormBackward(t.d_loss, t.loss_input, weights.final_norm(), t.loss_rstd, /*d_residual=*/{}, t.d_loss,
                      gradients.Of(layout.final_norm), t.norm_scratch, stream),
      "gradient of the final norm");
  // The transpose of gathering the loss rows: rows without a loss have no gradient from above.
  const size_t bytes = static_cast<size_t>(t.d_stream.rows * t.d_stream.cols) * DTypeSize(dtype);
  run(cudaMemsetAsync(t.d_stream.data, 0, bytes, stream), "gradient of the rows without a loss");
  run(ScatterRows(t.d_loss, packed.rows, t.d_stream, stream), "gradient of the loss rows");
}

absl::Status DeviceDecoder::Impl::Backward(const DeviceWeights& weights, const PackedBatch& batch,
                                           const float* coefficient, GradientSink gradients) {
  const auto T = static_cast<int64_t>(batch.tokens.size()), R = static_cast<int64_t>(batch.loss_rows.size());
  LOCKSTEP_CHECK(forward_tokens == T && forward_loss_rows == R,
                 "Backward follows the ForwardPacked of the same batch, once");
  forward_tokens = forward_loss_rows = -1;
  if (T == 0 || R == 0) return absl::OkStatus();
  gradients.layout = &weights.layout();

  coefficients.Begin();
  const auto array = coefficients.Add<float>(R);
  absl::Status status = coefficients.Reserve();
  if (!status.ok()) return status;
  std::memcpy(coefficients.Host(array), coefficient, static_cast<size_t>(R) * sizeof(float));
  status = coefficients.Copy(*stream_owner);
  if (!status.ok()) return status;
  training.coefficient = coefficients.Device(array);
  if (gradients.arena == nullptr) {
    const size_t bytes = static_cast<size_t>(LowRankScratch(T, gradients.low_rank.layout->rank)) * sizeof(float);
    if (low_rank_block.bytes() < bytes) {
      low_rank_block = DeviceBuffer();
      auto block = DeviceBuffer::Allocate(bytes, "gradients of adapters");
      if (!block.ok()) return block.status();
      low_rank_block = *std::move(block);
    }
    gradients.low_rank_scratch = low_rank_block.As<float>();
  }

  Calls run;
  BackwardLoss(run, weights, gradients);
  router = {.repeat = true};  // recomputed layers take the experts that the forward pass took
  for (int64_t layer = config.num_layers - 1; layer >= 0; --layer) BackwardLayer(run, weights, layer, gradients);
  router = {};
  if (const Tensor d_table = gradients.Of(weights.layout().params.embed); d_table.data != nullptr) {
    run(EmbeddingBackward(packed.ids, packed.run_order, packed.run_begin, packed.embedding_runs, training.d_stream,
                          d_table, stream),
        "gradient of the embedding");
  }
  return run.status();
}

absl::Status DeviceDecoder::Backward(const DeviceWeights& weights, const PackedBatch& batch, const float* coefficient,
                                     float* gradients) {
  GradientSink sink;
  sink.arena = gradients;
  return impl_->Backward(weights, batch, coefficient, sink);
}

absl::Status DeviceDecoder::Backward(const DeviceWeights& weights, const PackedBatch& batch, const float* coefficient,
                                     const DeviceLowRankGradients& gradients) {
  GradientSink sink;
  sink.low_rank = gradients;
  return impl_->Backward(weights, batch, coefficient, sink);
}

size_t DeviceDecoder::TrainingBytes(const ModelConfig& config, DType dtype, int64_t tokens, bool recompute,
                                    int64_t low_rank) {
  const Impl impl(config, dtype, Numerics::kMatched);
  Carver counter(nullptr, kDeviceAlignment);
  Training training;
  impl.CarveTraining(tokens, tokens, recompute, counter, training);
  // The batch's arrays (StagePacked) and the coefficients: 8 words a token, the routing, and their alignment.
  const size_t inputs = static_cast<size_t>(tokens) * (9 * sizeof(int32_t) + impl.routing_shape.row_bytes() + 1) + 1024;
  const size_t adapters = low_rank == 0 ? 0 : static_cast<size_t>(LowRankScratch(tokens, low_rank)) * sizeof(float);
  return counter.bytes() + inputs + adapters;
}

}  // namespace lockstep::cuda
