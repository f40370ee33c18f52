#include "engine/cuda/device_decoder.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/cuda/device_decoder_impl.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/model/rotary_table.h"

namespace lockstep::cuda {

DeviceDecoder::Impl::Impl(const ModelConfig& config, DType dtype, Numerics numerics)
    : config(config),
      dtype(dtype),
      numerics(numerics),
      attention_shape(AttentionShapeOf(config)),
      routing_shape(config),
      expert_layer(ExpertLayersBelow(config)) {}

Tensor DeviceDecoder::Impl::RopeTable() const {
  return Tensor(cos_sin.data(), DType::kF32, config.max_position_embeddings, config.head_dim);
}

void DeviceDecoder::Impl::CheckWeights(const DeviceWeights& weights) const {
  LOCKSTEP_CHECK(weights.dtype() == dtype, "weights and decoder have different dtypes");
  LOCKSTEP_CHECK(weights.config().hidden_size == config.hidden_size && weights.config().num_layers == config.num_layers,
                 "weights and decoder have different shapes");
}

// The decoder layer of engine/model/decoder.cc.
void DeviceDecoder::Impl::RunLayer(Calls& run, const DeviceWeights& all_weights, int64_t layer,
                                   const LayerTensors& tensors, AttendFn attend, LayerExtent extent) {
  const DeviceLayerWeights& w = all_weights.layer(layer);
  const LayerTensors& t = tensors;
  const float eps = config.rms_norm_eps;
  const QkvViews projected = SplitQkv(config, t.qkv), qkv = AttentionInputs(config, t);

  run(RmsNorm(t.input, {}, w.input_norm, eps, {}, t.normed, t.input_rstd, stream), "attention's norm");
  run(gemm->Linear(t.normed, w.qkv, w.qkv_bias, /*residual=*/{}, t.qkv, stream), "the QKV projection");
  if (config.qk_norm) {
    run(RmsNorm(projected.q, {}, w.q_norm, eps, {}, qkv.q, t.q_rstd, stream), "the norm of queries");
    run(RmsNorm(projected.k, {}, w.k_norm, eps, {}, qkv.k, t.k_rstd, stream), "the norm of keys");
  }
  attend(qkv, t);
  run(gemm->Linear(t.attention, w.o, /*bias=*/{}, /*residual=*/t.input, t.middle, stream), "the output projection");

  run(RmsNorm(t.middle, {}, w.post_norm, eps, {}, t.normed, t.post_rstd, stream), "the MLP's norm");
  if (config.HasExperts(layer)) {
    RunExperts(run, all_weights, layer, t, extent);
    return;
  }
  run(gemm->Linear(t.normed, w.gate_up, /*bias=*/{}, /*residual=*/{}, t.gate_up, stream), "the gate projection");
  if (extent == LayerExtent::kThroughGateUp) return;
  run(SwiGlu(t.gate_up, t.activated, stream), "SwiGLU");
  run(gemm->Linear(t.activated, w.down, /*bias=*/{}, /*residual=*/t.middle, t.output, stream), "the down projection");
}

// The residual stream is updated in place, and q and k are normed where they are: nothing needs them as they were.
LayerTensors DeviceDecoder::Impl::CarvePaged(int64_t rows, Carver& carver) const {
  const int64_t T = rows, K = config.experts_per_token;
  LayerTensors t;
  t.input = carver.Take(dtype, T, config.hidden_size);
  t.middle = t.output = t.input;
  t.normed = carver.Take(dtype, T, config.hidden_size);
  t.qkv = carver.Take(dtype, T, config.qkv_rows());
  t.qk = t.qkv;
  t.attention = carver.Take(dtype, T, config.num_heads * config.head_dim);
  const size_t shared = carver.Mark();  // a layer has the one or the other
  t.gate_up = carver.Take(dtype, T, 2 * config.intermediate_size);
  t.activated = carver.Take(dtype, T, config.intermediate_size);
  if (config.num_experts == 0) return t;
  const size_t dense_end = carver.Mark();
  carver.Rewind(shared);
  CarveExperts(T, carver, t.experts);
  t.experts.experts = carver.TakeArray<int32_t>(T * K);
  t.experts.rows = carver.Take(dtype, T * K, config.hidden_size);
  t.experts.activated = carver.Take(dtype, T * K, config.moe_intermediate_size);
  if (carver.Mark() < dense_end) carver.Rewind(dense_end);  // what is taken next lies behind both
  return t;
}

int64_t DeviceDecoder::Impl::PagedScratchBytes(const PagedLimits& limits) const {
  return AttentionPagedScratchBytes(attention_shape, dtype, limits.decode_rows, limits.max_position, numerics);
}

DeviceDecoder::DeviceDecoder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceDecoder::~DeviceDecoder() = default;
const ModelConfig& DeviceDecoder::config() const { return impl_->config; }
DType DeviceDecoder::dtype() const { return impl_->dtype; }
const Stream& DeviceDecoder::stream() const { return *impl_->stream_owner; }

absl::Status DeviceDecoder::CheckShape(const ModelConfig& config) {
  if (AttentionSupports(Impl(config, DType::kF16, Numerics::kMatched).attention_shape)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      config.architecture, ": attention with head_dim ", config.head_dim, ", ", config.num_heads, " heads and ",
      config.num_kv_heads, " key/value heads has no CUDA kernel (head_dim 16, 32, 64, 96, 128; at most ",
      kAttentionGroupMax, " heads of one key/value head); run it on the CPU"));
}

size_t DeviceDecoder::PagedBytes(const ModelConfig& config, DType dtype, Numerics numerics, const PagedLimits& limits) {
  const Impl impl(config, dtype, numerics);
  Carver counter(nullptr, kDeviceAlignment);
  impl.CarvePaged(limits.rows, counter);
  counter.TakeArray<char>(impl.PagedScratchBytes(limits));
  return counter.bytes() +
         static_cast<size_t>(config.max_position_embeddings * config.head_dim) * sizeof(float);  // the rotary table
}

absl::StatusOr<std::unique_ptr<DeviceDecoder>> DeviceDecoder::Create(const ModelConfig& config, DType dtype,
                                                                     Numerics numerics, const PagedLimits& limits,
                                                                     DeviceGemm* gemm, const Stream* stream) {
  if (absl::Status status = CheckShape(config); !status.ok()) return status;
  auto impl = std::make_unique<Impl>(config, dtype, numerics);
  Impl& m = *impl;
  m.gemm = gemm;
  m.stream_owner = stream;
  m.stream = stream->get();
  m.limits = limits;

  const size_t table_bytes = static_cast<size_t>(config.max_position_embeddings * config.head_dim) * sizeof(float);
  auto table = DeviceBuffer::Allocate(table_bytes, "the rotary table");
  if (!table.ok()) return table.status();
  m.cos_sin = *std::move(table);
  auto host = PinnedBuffer::Allocate(table_bytes, "the rotary table");
  if (!host.ok()) return host.status();
  FillRotaryTable(config, host->As<float>());
  absl::Status status = stream->CopyToDevice(m.cos_sin.data(), host->data(), table_bytes);
  if (status.ok()) status = stream->Wait("copying the rotary table");
  if (!status.ok()) return status;

  auto block =
      DeviceBuffer::Allocate(PagedBytes(config, dtype, numerics, limits) - table_bytes, "a step's activations");
  if (!block.ok()) return block.status();
  m.paged_block = *std::move(block);
  Carver carver(m.paged_block.data(), kDeviceAlignment);
  m.paged = m.CarvePaged(limits.rows, carver);
  m.paged_scratch = carver.TakeArray<char>(m.PagedScratchBytes(limits));
  return std::unique_ptr<DeviceDecoder>(new DeviceDecoder(std::move(impl)));
}

namespace {

// The first `rows` rows of a call's tensors, which were carved for the most there are.
LayerTensors FirstRows(const LayerTensors& all, int64_t rows, int64_t top_k) {
  LayerTensors t = all;
  for (Tensor* tensor :
       {&t.input, &t.middle, &t.output, &t.normed, &t.qkv, &t.qk, &t.attention, &t.gate_up, &t.activated}) {
    *tensor = tensor->Rows(0, rows);
  }
  if (t.experts.experts == nullptr) return t;
  t.experts.router_logits = t.experts.router_logits.Rows(0, rows);
  for (Tensor* tensor : {&t.experts.gate_up, &t.experts.rows, &t.experts.activated}) {
    *tensor = tensor->Rows(0, rows * top_k);
  }
  return t;
}

}  // namespace

absl::Status DeviceDecoder::ForwardPaged(const DeviceWeights& weights, const PagedInputs& inputs, const DeviceKv& cache,
                                         const Tensor& final_hidden, uint8_t* routing) {
  Impl& m = *impl_;
  const ModelConfig& config = m.config;
  const int64_t T = inputs.rows;
  m.CheckWeights(weights);
  LOCKSTEP_CHECK(T <= m.limits.rows && inputs.decode_rows <= m.limits.decode_rows && inputs.decode_rows <= T,
                 "a step has more rows than the decoder was made for");
  LOCKSTEP_CHECK(inputs.max_position <= m.limits.max_position, "a position is beyond what the decoder was made for");
  LOCKSTEP_CHECK(final_hidden.rows == inputs.outputs && final_hidden.cols == config.hidden_size,
                 "final_hidden is [outputs, D]");
  LOCKSTEP_CHECK(inputs.output_rows != nullptr || inputs.outputs == T, "all rows are outputs, or they are named");
  if (T == 0) return absl::OkStatus();

  Calls run;
  m.router = {.record = m.routing_shape.layers == 0 ? nullptr : routing};
  const LayerTensors t = FirstRows(m.paged, T, config.experts_per_token);
  const QkvShape shape = {config.num_heads, config.num_kv_heads, config.head_dim};
  run(Embedding(inputs.tokens, T, weights.embed(), t.input, m.stream), "the embedding");
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const PagedView view = {.block_table = inputs.block_table,
                            .table_stride = inputs.table_stride,
                            .row_sequence = inputs.row_sequence,
                            .positions = inputs.positions,
                            .key_pages = cache.keys(layer),
                            .value_pages = cache.values(layer),
                            .decode_rows = inputs.decode_rows};
    const auto attend = [&](const QkvViews& qkv, const LayerTensors& tensors) {
      run(RopeWriteKv(shape, tensors.qkv, /*bias=*/{}, inputs.positions, inputs.slots, m.RopeTable(), qkv.q,
                      cache.keys(layer), cache.values(layer), m.stream),
          "rotation and the KV cache");
      run(AttentionPaged(m.attention_shape, qkv.q, view, inputs.max_position, m.numerics, m.paged_scratch,
                         tensors.attention, m.stream),
          "attention");
    };
    m.RunLayer(run, weights, layer, t, attend, LayerExtent::kThroughOutput);
  }
  m.router = {};
  if (inputs.outputs == 0) return run.status();
  Tensor last = t.output;
  if (inputs.output_rows != nullptr) {
    run(GatherRows(t.output, inputs.output_rows, /*scale=*/nullptr, final_hidden, m.stream), "the wanted rows");
    last = final_hidden;
  }
  run(RmsNorm(last, {}, weights.final_norm(), config.rms_norm_eps, {}, final_hidden, nullptr, m.stream),
      "the final norm");
  return run.status();
}

absl::Status DeviceDecoder::Logits(const DeviceWeights& weights, const Tensor& final_hidden, const Tensor& logits) {
  return CudaStatus(impl_->gemm->Linear(final_hidden, weights.output(), {}, {}, logits, impl_->stream), "logits");
}

}  // namespace lockstep::cuda
