// The transposed walk of decoder.cc: the same operations, last to first. Activation gradients are stored in the
// activation dtype, parameter gradients are added in FP32.
#include <algorithm>
#include <cstring>
#include <thread>

#include "engine/base/check.h"
#include "engine/model/decoder.h"
#include "engine/model/decoder_impl.h"

namespace lockstep {
namespace {

// Extents of the CPU kernels' scratch: rows of a packed left operand, its columns of accumulators, and the largest
// chunk of logits (cpu/gemm.cc, cpu/log_prob.h).
constexpr int64_t kGemmRows = 1056;
constexpr int64_t kGemmColumns = 256;
constexpr int64_t kLogitRows = 512;
constexpr int64_t kLogitColumns = 4096;
constexpr size_t kRoundingBytes = size_t{24} << 20;  // large blocks are whole huge pages

// What the operations themselves hold, at most: packed operands and accumulators of a GEMM, keys and values of
// attention (in the worst case each token is a sequence with a page of its own), chunks of logits. A quarter more
// everywhere, since their scratch grows in steps.
size_t OpsScratchBytes(const ModelConfig& config, DType dtype, int64_t tokens) {
  const int64_t query_cols = config.num_heads * config.head_dim, kv_cols = config.num_kv_heads * config.head_dim;
  const int64_t widest = std::max({2 * config.intermediate_size, 2 * config.moe_intermediate_size, config.qkv_rows(),
                                   config.hidden_size, query_cols, kLogitRows});
  const int64_t packed_activations = std::min(tokens, kGemmRows) * widest;
  const int64_t packed_gradients = std::min(std::max(widest, kLogitColumns), kGemmRows) * std::max(tokens, kLogitRows);
  const int64_t logits = kLogitRows * (kLogitColumns + config.hidden_size);
  const int64_t attention = 8 * (tokens + kPageTokens) * config.head_dim;
  const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
  const int64_t shared_floats = std::max(packed_activations, packed_gradients) + logits;
  const int64_t thread_floats = attention + (kGemmRows + 1024) * kGemmColumns;
  const int64_t pages = 2 * tokens * kPageTokens * kv_cols * static_cast<int64_t>(DTypeSize(dtype));
  const int64_t sequences = tokens * static_cast<int64_t>(sizeof(PagedSequence) + sizeof(int32_t));
  const int64_t bytes = 4 * (shared_floats + threads * thread_floats) + pages + sequences;
  return static_cast<size_t>(bytes + bytes / 4) + kRoundingBytes;
}

}  // namespace

void Decoder::Impl::CarveTraining(const ModelConfig& config, DType dtype, int64_t tokens, int64_t loss_rows,
                                  bool recompute, Carver& carver, Training& training) {
  const int64_t T = tokens, R = loss_rows, L = config.num_layers, D = config.hidden_size;
  const int64_t F = config.intermediate_size, query_cols = config.num_heads * config.head_dim;
  Training& t = training;
  t.streams.resize(L + 1);
  t.layers.resize(L);
  for (Tensor& stream : t.streams) stream = carver.Take(dtype, T, D);
  const Tensor normed = carver.Take(dtype, T, D);
  const Tensor activated = carver.Take(dtype, T, F);
  const int64_t P = T * config.experts_per_token, M = config.moe_intermediate_size;
  const Tensor expert_rows = carver.Take(dtype, P, D), expert_activated = carver.Take(dtype, P, M);
  const auto any_layer = [&](bool experts) {
    for (int64_t layer = 0; layer < L; ++layer) {
      if (config.HasExperts(layer) == experts) return true;
    }
    return false;
  };
  for (int64_t layer = 0; layer < L; ++layer) {
    LayerTensors& kept = t.layers[layer];
    if (recompute && layer > 0) {
      kept = t.layers.front();
    } else {
      kept.qkv = carver.Take(dtype, T, config.qkv_rows());
      kept.qk = kept.qkv;
      if (config.qk_norm) {
        kept.qk = carver.Take(dtype, T, query_cols + config.num_kv_heads * config.head_dim);
        kept.q_rstd = carver.Take(DType::kF32, T, config.num_heads).As<float>();
        kept.k_rstd = carver.Take(DType::kF32, T, config.num_kv_heads).As<float>();
      }
      kept.attention = carver.Take(dtype, T, query_cols);
      kept.lse = carver.Take(DType::kF32, T, config.num_heads);
      kept.middle = carver.Take(dtype, T, D);
      // The one slot of recomputed layers serves both kinds.
      if (recompute ? any_layer(false) : !config.HasExperts(layer)) kept.gate_up = carver.Take(dtype, T, 2 * F);
      if (recompute ? any_layer(true) : config.HasExperts(layer)) {
        CarveExperts(config, dtype, T, carver, kept.experts);
      }
      kept.input_rstd = carver.Take(DType::kF32, 1, T).As<float>();
      kept.post_rstd = carver.Take(DType::kF32, 1, T).As<float>();
    }
    kept.input = t.streams[layer];
    kept.output = t.streams[layer + 1];
    kept.normed = normed;
    kept.activated = activated;
    kept.experts.rows = expert_rows;
    kept.experts.activated = expert_activated;
  }
  t.loss_input = carver.Take(dtype, R, D);
  t.loss_normed = carver.Take(dtype, R, D);
  t.loss_rstd = carver.Take(DType::kF32, 1, R).As<float>();
  t.loss_lse = carver.Take(DType::kF32, 1, R).As<float>();

  t.d_stream = carver.Take(dtype, T, D);
  t.d_normed = carver.Take(dtype, T, D);
  const size_t shared = carver.Mark();
  t.d_loss = carver.Take(dtype, R, D);
  carver.Rewind(shared);
  t.d_gate_up = carver.Take(dtype, T, 2 * F);
  carver.Rewind(shared);
  t.d_experts.d_rows = carver.Take(dtype, P, D);
  t.d_experts.d_activated = carver.Take(dtype, P, M);
  t.d_experts.d_gate_up = carver.Take(dtype, P, 2 * M);
  t.d_experts.d_router_logits = carver.Take(DType::kF32, T, config.num_experts);
  t.d_experts.dots = carver.Take(DType::kF32, 1, P).As<float>();
  t.d_experts.products = carver.Take(DType::kF32, 1, P).As<float>();
  carver.Rewind(shared);
  t.d_attention = carver.Take(dtype, T, query_cols);
  t.d_qkv = carver.Take(dtype, T, config.qkv_rows());
}

void GradientSink::Weight(Ops& ops, int param, const Tensor& d_out, const Tensor& x, int bias) const {
  if (arena_ != nullptr) {
    ops.LinearBackwardWeight(d_out, x, Of(param), Of(bias));
    return;
  }
  const LowRankLayout& low_rank = *low_rank_.layout;
  for (const int index : low_rank.of_param[param]) {
    const LowRankAdapter& adapter = low_rank.adapters[index];
    // The arena of the adapters' values is only read.
    float* const values = const_cast<float*>(low_rank_.adapters);
    ops.LowRankBackward(d_out.Cols(adapter.row_begin, adapter.rows), x, low_rank.A(adapter, values),
                        low_rank.B(adapter, values), low_rank.scale, low_rank.A(adapter, low_rank_.gradients),
                        low_rank.B(adapter, low_rank_.gradients));
  }
}

// x += down(silu(gate) * up). The product is dead once d_down has it, so its gradient takes its place.
void Decoder::Impl::BackwardMlp(const Weights& weights, int64_t layer, const GradientSink& gradients) {
  const LayerWeights& w = weights.layers[layer];
  const ParamLayout::LayerParams& at = weights.layout.layers[layer];
  const LayerTensors& t = training.layers[layer];
  ops->SwiGlu(t.gate_up, t.activated);
  gradients.Weight(*ops, at.down, training.d_stream, t.activated);
  const Tensor& d_activated = t.activated;
  ops->LinearBackwardInput(training.d_stream, w.down, d_activated, /*accumulate=*/false);
  ops->SwiGluBackward(d_activated, t.gate_up, training.d_gate_up);
  ops->RmsNorm(t.middle, Vector(w.post_norm, config.hidden_size), config.rms_norm_eps, t.normed, t.post_rstd);
  gradients.Weight(*ops, at.gate_up, training.d_gate_up, t.normed);
  ops->LinearBackwardInput(training.d_gate_up, w.gate_up, training.d_normed, /*accumulate=*/false);
}

void Decoder::Impl::BackwardLayer(const Weights& weights, int64_t layer, std::span<const int32_t> cu_seqlens,
                                  const GradientSink& gradients) {
  const LayerWeights& w = weights.layers[layer];
  const ParamLayout::LayerParams& at = weights.layout.layers[layer];
  const int64_t D = config.hidden_size, E = config.head_dim;
  if (recompute && computed_layer != layer) {
    RunPackedLayer(weights, layer, cu_seqlens, LayerExtent::kThroughGateUp);
  }
  const LayerTensors& t = training.layers[layer];
  const Tensor& d_stream = training.d_stream;
  const Tensor& d_normed = training.d_normed;

  if (w.experts.empty()) {
    BackwardMlp(weights, layer, gradients);
  } else {
    BackwardExperts(weights, layer, gradients);
  }
  ops->RmsNormBackward(d_normed, t.middle, Vector(w.post_norm, D), t.post_rstd, /*d_residual=*/d_stream, d_stream,
                       gradients.Of(at.post_norm));

  // x += o(attention(rope(q), rope(k), v))
  const QkvViews qkv = AttentionInputs(config, t), d_qkv = SplitQkv(config, training.d_qkv);
  gradients.Weight(*ops, at.o, d_stream, t.attention);
  ops->LinearBackwardInput(d_stream, w.o, training.d_attention, /*accumulate=*/false);
  ops->AttentionPackedBackward(attention_shape, training.d_attention, qkv.q, qkv.k, qkv.v, t.attention, t.lse,
                               cu_seqlens, d_qkv.q, d_qkv.k, d_qkv.v);
  ops->Rope(d_qkv.q, config.num_heads, E, positions, RopeTable(), /*backward=*/true);
  ops->Rope(d_qkv.k, config.num_kv_heads, E, positions, RopeTable(), /*backward=*/true);
  if (config.qk_norm) {
    const QkvViews projected = SplitQkv(config, t.qkv);
    ops->RmsNormBackward(d_qkv.q, projected.q, Vector(w.q_norm, E), t.q_rstd, /*d_residual=*/{}, d_qkv.q,
                         gradients.Of(at.q_norm));
    ops->RmsNormBackward(d_qkv.k, projected.k, Vector(w.k_norm, E), t.k_rstd, /*d_residual=*/{}, d_qkv.k,
                         gradients.Of(at.k_norm));
  }
  ops->RmsNorm(t.input, Vector(w.input_norm, D), config.rms_norm_eps, t.normed, t.input_rstd);
  gradients.Weight(*ops, at.qkv, training.d_qkv, t.normed, at.qkv_bias);
  ops->LinearBackwardInput(training.d_qkv, w.qkv, d_normed, /*accumulate=*/false);
  ops->RmsNormBackward(d_normed, t.input, Vector(w.input_norm, D), t.input_rstd, /*d_residual=*/d_stream, d_stream,
                       gradients.Of(at.input_norm));
}

void Decoder::Backward(const Weights& weights, const PackedBatch& batch, float temperature, const float* coefficient,
                       GradientArena gradients) {
  impl_->Backward(weights, batch, temperature, coefficient, GradientSink(weights.layout, gradients));
}

void Decoder::Backward(const Weights& weights, const PackedBatch& batch, float temperature, const float* coefficient,
                       const LowRankGradients& gradients) {
  impl_->Backward(weights, batch, temperature, coefficient, GradientSink(weights.layout, gradients));
}

void Decoder::Impl::Backward(const Weights& weights, const PackedBatch& batch, float temperature,
                             const float* coefficient, const GradientSink& gradients) {
  const int64_t T = static_cast<int64_t>(batch.tokens.size()), R = static_cast<int64_t>(batch.loss_rows.size());
  LOCKSTEP_CHECK(forward_tokens == T && forward_loss_rows == R,
                 "Backward follows the ForwardPacked of the same batch, once");
  forward_tokens = forward_loss_rows = -1;
  if (T == 0 || R == 0) return;
  const ParamLayout& layout = weights.layout;

  const Training& t = training;
  ops->LogProbBackward(t.loss_normed, weights.output(), batch.targets, temperature, coefficient, t.loss_lse, t.d_loss,
                       gradients.Of(layout.output()));
  ops->RmsNormBackward(t.d_loss, t.loss_input, Vector(weights.final_norm, config.hidden_size), t.loss_rstd,
                       /*d_residual=*/{}, t.d_loss, gradients.Of(layout.final_norm));
  // The transpose of gathering the loss rows: rows without a loss have no gradient from above.
  const size_t row_bytes = config.hidden_size * DTypeSize(dtype);
  std::memset(t.d_stream.data, 0, T * row_bytes);
  for (int64_t i = 0; i < R; ++i) std::memcpy(t.d_stream.Row(batch.loss_rows[i]), t.d_loss.Row(i), row_bytes);

  router = {.given = &batch};  // recomputed layers take the experts that the forward pass took
  for (int64_t layer = config.num_layers - 1; layer >= 0; --layer) {
    BackwardLayer(weights, layer, batch.cu_seqlens, gradients);
  }
  router = {};
  if (const Tensor d_table = gradients.Of(layout.embed); d_table.data != nullptr) {
    ops->EmbeddingBackward(batch.tokens, t.d_stream, d_table);
  }
}

size_t Decoder::TrainingBytes(const ModelConfig& config, DType dtype, int64_t tokens, bool recompute) {
  Carver counter(nullptr);
  Impl::Training training;
  Impl::CarveTraining(config, dtype, tokens, tokens, recompute, counter, training);
  const size_t rope_table = config.max_position_embeddings * config.head_dim * sizeof(float);
  const size_t positions = tokens * sizeof(int32_t);
  return counter.bytes() + positions + rope_table + OpsScratchBytes(config, dtype, tokens);
}

}  // namespace lockstep
