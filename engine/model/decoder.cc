#include "engine/model/decoder.h"

#include <cstring>

#include "engine/base/check.h"
#include "engine/model/decoder_impl.h"
#include "engine/model/rotary_table.h"

namespace lockstep {
namespace {

// Grows to `bytes`, never shrinks; the old block goes first, so the peak is the larger of the two.
void Reserve(Buffer& buffer, size_t bytes) {
  if (buffer.bytes() >= bytes) return;
  buffer = Buffer();
  buffer = Buffer(bytes);
}

// out[i] = in[rows[i]]
void GatherRows(const Tensor& in, std::span<const int32_t> rows, const Tensor& out) {
  const size_t row_bytes = in.cols * DTypeSize(in.dtype);
  for (size_t i = 0; i < rows.size(); ++i) {
    LOCKSTEP_CHECK(rows[i] >= 0 && rows[i] < in.rows, "wanted row is not in the batch");
    std::memcpy(out.Row(i), in.Row(rows[i]), row_bytes);
  }
}

}  // namespace

Decoder::Impl::Impl(const ModelConfig& config, DType dtype, Ops* ops)
    : config(config),
      dtype(dtype),
      ops(ops),
      attention_shape(AttentionShapeOf(config)),
      cos_sin(config.max_position_embeddings * config.head_dim * sizeof(float)),
      routing_shape(config),
      expert_layer(ExpertLayersBelow(config)),
      given_experts(static_cast<size_t>(config.experts_per_token)) {
  FillRotaryTable(config, cos_sin.As<float>());
}

Tensor Decoder::Impl::RopeTable() const {
  return Tensor(const_cast<void*>(cos_sin.data()), DType::kF32, config.max_position_embeddings, config.head_dim);
}

Tensor Decoder::Impl::Vector(const Buffer& buffer, int64_t cols) const {
  return Tensor(const_cast<void*>(buffer.data()), dtype, 1, cols);
}

void Decoder::Impl::CheckTokens(std::span<const int32_t> tokens, const Weights& weights) const {
  LOCKSTEP_CHECK(weights.dtype == dtype, "weights and decoder have different dtypes");
  LOCKSTEP_CHECK(weights.config.hidden_size == config.hidden_size && weights.layers.size() == config.num_layers,
                 "weights and decoder have different shapes");
  for (int32_t token : tokens) {
    LOCKSTEP_CHECK(token >= 0 && token < config.vocab_size, "token id outside the vocabulary");
  }
}

// The decoder layer. x is the residual stream:
//   x += o_proj(attention(rope(q), rope(k), v)),  q, k, v = qkv_proj(rms_norm(x)), with q/k norms q and k normed by
//   head x += down_proj(silu(gate) * up),              gate, up = gate_up_proj(rms_norm(x))
void Decoder::Impl::RunLayer(const Weights& all_weights, int64_t layer, const LayerTensors& tensors,
                             std::span<const int32_t> positions, AttendFn attend, LayerExtent extent) {
  const LayerWeights& weights = all_weights.layers[layer];
  const LayerTensors& t = tensors;
  const int64_t D = config.hidden_size, E = config.head_dim;
  const QkvViews projected = SplitQkv(config, t.qkv), qkv = AttentionInputs(config, t);

  ops->RmsNorm(t.input, Vector(weights.input_norm, D), config.rms_norm_eps, t.normed, t.input_rstd);
  ops->Linear(t.normed, weights.qkv, Vector(weights.qkv_bias, config.qkv_rows()), /*residual=*/{}, t.qkv);
  if (config.qk_norm) {
    ops->RmsNorm(projected.q, Vector(weights.q_norm, E), config.rms_norm_eps, qkv.q, t.q_rstd);
    ops->RmsNorm(projected.k, Vector(weights.k_norm, E), config.rms_norm_eps, qkv.k, t.k_rstd);
  }
  ops->Rope(qkv.q, config.num_heads, E, positions, RopeTable(), /*backward=*/false);
  ops->Rope(qkv.k, config.num_kv_heads, E, positions, RopeTable(), /*backward=*/false);
  attend(qkv, t);
  ops->Linear(t.attention, weights.o, /*bias=*/{}, /*residual=*/t.input, t.middle);

  ops->RmsNorm(t.middle, Vector(weights.post_norm, D), config.rms_norm_eps, t.normed, t.post_rstd);
  if (!weights.experts.empty()) {
    RunExperts(all_weights, layer, t, extent);
    return;
  }
  ops->Linear(t.normed, weights.gate_up, /*bias=*/{}, /*residual=*/{}, t.gate_up);
  if (extent == LayerExtent::kThroughGateUp) return;
  ops->SwiGlu(t.gate_up, t.activated);
  ops->Linear(t.activated, weights.down, /*bias=*/{}, /*residual=*/t.middle, t.output);
}

Decoder::Decoder(const ModelConfig& config, DType dtype, Ops* ops)
    : impl_(std::make_unique<Impl>(config, dtype, ops)) {}

Decoder::~Decoder() = default;

void Decoder::ForwardPaged(const Weights& weights, const PagedBatch& batch, const KvStorage& cache,
                           const Tensor& final_hidden, std::string* routing) {
  Impl& m = *impl_;
  const ModelConfig& config = m.config;
  const int64_t T = static_cast<int64_t>(batch.tokens.size()), D = config.hidden_size;
  const int64_t R = static_cast<int64_t>(batch.output_rows.size());
  m.CheckTokens(batch.tokens, weights);
  LOCKSTEP_CHECK(batch.positions.size() == batch.tokens.size(), "one position for each token");
  LOCKSTEP_CHECK(final_hidden.rows == R && final_hidden.cols == D, "final_hidden is [output_rows, D]");
  for (int32_t position : batch.positions) {
    LOCKSTEP_CHECK(position >= 0 && position < config.max_position_embeddings, "position beyond the model's longest");
  }
  if (routing != nullptr) routing->resize(static_cast<size_t>(T) * m.routing_shape.row_bytes());
  if (T == 0) return;
  m.router = {.record = routing == nullptr ? nullptr : routing->data()};

  LayerTensors t;
  const auto carve = [&](Carver carver) {
    t.input = carver.Take(m.dtype, T, D);
    t.middle = t.output = t.input;  // the residual stream is updated in place
    t.normed = carver.Take(m.dtype, T, D);
    t.qkv = carver.Take(m.dtype, T, config.qkv_rows());
    t.qk = t.qkv;  // its first columns: nothing needs q and k as they were before their norms
    t.attention = carver.Take(m.dtype, T, config.num_heads * config.head_dim);
    const size_t shared = carver.Mark();  // a layer has the one or the other
    t.gate_up = carver.Take(m.dtype, T, 2 * config.intermediate_size);
    t.activated = carver.Take(m.dtype, T, config.intermediate_size);
    if (config.num_experts == 0) return carver.bytes();
    carver.Rewind(shared);
    Impl::CarveExperts(config, m.dtype, T, carver, t.experts);
    t.experts.rows = carver.Take(m.dtype, T * config.experts_per_token, D);
    t.experts.activated = carver.Take(m.dtype, T * config.experts_per_token, config.moe_intermediate_size);
    return carver.bytes();
  };
  Reserve(m.paged_block, carve(Carver(nullptr)));
  carve(Carver(m.paged_block.data()));

  m.ops->Embedding(batch.tokens, weights.embed, t.input);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const auto attend = [&](const QkvViews& qkv, const LayerTensors& tensors) {
      m.ops->WriteKv(m.attention_shape, qkv.k, qkv.v, batch.sequences, cache.layer(layer));
      m.ops->AttentionPaged(m.attention_shape, qkv.q, batch.sequences, cache.layer(layer), tensors.attention);
    };
    m.RunLayer(weights, layer, t, batch.positions, attend, LayerExtent::kThroughOutput);
  }
  m.router = {};
  if (R == 0) return;
  GatherRows(t.output, batch.output_rows, final_hidden);
  m.ops->RmsNorm(final_hidden, m.Vector(weights.final_norm, D), config.rms_norm_eps, final_hidden, nullptr);
}

void Decoder::Logits(const Weights& weights, const Tensor& final_hidden, const Tensor& logits) {
  impl_->ops->Linear(final_hidden, weights.output(), /*bias=*/{}, /*residual=*/{}, logits);
}

void Decoder::Impl::RunPackedLayer(const Weights& weights, int64_t layer, std::span<const int32_t> cu_seqlens,
                                   LayerExtent extent) {
  const auto attend = [&](const QkvViews& qkv, const LayerTensors& tensors) {
    ops->AttentionPacked(attention_shape, qkv.q, qkv.k, qkv.v, cu_seqlens, tensors.attention, tensors.lse);
  };
  RunLayer(weights, layer, training.layers[layer], positions, attend, extent);
  computed_layer = layer;
}

void Decoder::ForwardPacked(const Weights& weights, const PackedBatch& batch, float temperature, bool recompute,
                            float* log_prob, float* entropy, RoutingTrace* trace) {
  Impl& m = *impl_;
  const ModelConfig& config = m.config;
  const int64_t T = static_cast<int64_t>(batch.tokens.size()), R = static_cast<int64_t>(batch.loss_rows.size());
  m.CheckTokens(batch.tokens, weights);
  m.CheckTokens(batch.targets, weights);
  LOCKSTEP_CHECK(batch.targets.size() == batch.loss_rows.size(), "one target for each loss row");
  LOCKSTEP_CHECK(!batch.cu_seqlens.empty() && batch.cu_seqlens.front() == 0 && batch.cu_seqlens.back() == T,
                 "cu_seqlens runs from 0 to the number of tokens");
  m.positions.resize(T);
  for (size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
    const int32_t begin = batch.cu_seqlens[i], end = batch.cu_seqlens[i + 1];
    LOCKSTEP_CHECK(begin <= end && end - begin <= config.max_position_embeddings,
                   "packed sequence is longer than the model's longest");
    for (int32_t row = begin; row < end; ++row) m.positions[row] = row - begin;
  }
  const size_t row_bytes = m.routing_shape.row_bytes(), rows = batch.routing.empty() ? 0 : batch.tokens.size();
  LOCKSTEP_CHECK(batch.routing.size() == rows * row_bytes && batch.has_routing.size() == rows,
                 "given routing has a row for each token, of the model's layers and experts");
  if (trace != nullptr) *trace = {.experts = std::string(static_cast<size_t>(T) * row_bytes, '\0')};
  m.forward_tokens = T;
  m.forward_loss_rows = R;
  m.recompute = recompute;
  if (T == 0) return;

  Carver counter(nullptr);
  Impl::CarveTraining(config, m.dtype, T, R, recompute, counter, m.training);
  Reserve(m.training_block, counter.bytes());
  Carver carver(m.training_block.data());
  Impl::CarveTraining(config, m.dtype, T, R, recompute, carver, m.training);

  Impl::Training& t = m.training;
  m.router = {.given = &batch, .record = trace == nullptr ? nullptr : trace->experts.data(), .trace = trace};
  m.ops->Embedding(batch.tokens, weights.embed, t.streams.front());
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    m.RunPackedLayer(weights, layer, batch.cu_seqlens, LayerExtent::kThroughOutput);
  }
  m.router = {};
  if (R == 0) return;
  GatherRows(t.streams.back(), batch.loss_rows, t.loss_input);
  m.ops->RmsNorm(t.loss_input, m.Vector(weights.final_norm, config.hidden_size), config.rms_norm_eps, t.loss_normed,
                 t.loss_rstd);
  m.ops->LogProb(t.loss_normed, weights.output(), batch.targets, temperature, log_prob, entropy, t.loss_lse);
}

}  // namespace lockstep
