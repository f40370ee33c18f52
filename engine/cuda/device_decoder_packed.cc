// The packed forward: the batch goes to the device in one copy, the results come back in one.
#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/base/check.h"
#include "engine/cuda/device_decoder.h"
#include "engine/cuda/device_decoder_impl.h"
#include "engine/kernels/cuda/kernels.h"

namespace lockstep::cuda {
namespace {

void CheckTokens(std::span<const int32_t> tokens, int64_t vocab_size) {
  for (const int32_t token : tokens)
    LOCKSTEP_CHECK(token >= 0 && token < vocab_size, "token id outside the vocabulary");
}

void CheckBatch(const ModelConfig& config, const RoutingShape& shape, const PackedBatch& batch) {
  const auto tokens = static_cast<int32_t>(batch.tokens.size());
  CheckTokens(batch.tokens, config.vocab_size);
  CheckTokens(batch.targets, config.vocab_size);
  LOCKSTEP_CHECK(batch.targets.size() == batch.loss_rows.size(), "one target for each loss row");
  LOCKSTEP_CHECK(!batch.cu_seqlens.empty() && batch.cu_seqlens.front() == 0 && batch.cu_seqlens.back() == tokens,
                 "cu_seqlens runs from 0 to the number of tokens");
  for (size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
    const int32_t length = batch.cu_seqlens[i + 1] - batch.cu_seqlens[i];
    LOCKSTEP_CHECK(length >= 0 && length <= config.max_position_embeddings,
                   "packed sequence is longer than the model's longest");
  }
  for (size_t i = 0; i < batch.loss_rows.size(); ++i) {
    LOCKSTEP_CHECK(batch.loss_rows[i] > (i == 0 ? -1 : batch.loss_rows[i - 1]) && batch.loss_rows[i] < tokens,
                   "loss rows are ascending rows of the batch");
  }
  const size_t rows = batch.routing.empty() ? 0 : batch.tokens.size();
  LOCKSTEP_CHECK(batch.routing.size() == rows * shape.row_bytes() && batch.has_routing.size() == rows,
                 "given routing has a row for each token, of the model's layers and experts");
}

template <typename T, typename From>
void Put(const InputBlock& block, InputBlock::Array<T> array, const From& values) {
  static_assert(sizeof(T) == sizeof(values[0]));
  if (!values.empty()) std::memcpy(block.Host(array), values.data(), values.size() * sizeof(T));
}

// Grows to `bytes`; the old block goes first, so the peak is the larger of the two.
absl::Status Grow(DeviceBuffer& buffer, size_t bytes, const char* purpose) {
  if (buffer.bytes() >= bytes) return absl::OkStatus();
  buffer = DeviceBuffer();
  auto grown = DeviceBuffer::Allocate(bytes, purpose);
  if (!grown.ok()) return grown.status();
  buffer = *std::move(grown);
  return absl::OkStatus();
}

}  // namespace

absl::Status DeviceDecoder::Impl::StagePacked(const PackedBatch& batch, float temperature) {
  const auto T = static_cast<int64_t>(batch.tokens.size()), R = static_cast<int64_t>(batch.loss_rows.size());
  const EmbeddingRuns runs = PlanEmbeddingRuns(batch.tokens);
  InputBlock& block = packed_block;
  block.Begin();
  const auto ids = block.Add<int32_t>(T), positions = block.Add<int32_t>(T), order = block.Add<int32_t>(T);
  const auto begin = block.Add<int32_t>(static_cast<int64_t>(runs.begin.size()));
  const auto cu_seqlens = block.Add<int32_t>(static_cast<int64_t>(batch.cu_seqlens.size()));
  const auto rows = block.Add<int32_t>(R), targets = block.Add<int32_t>(R);
  const auto inverse_temperature = block.Add<float>(R);
  const auto routing = block.Add<char>(static_cast<int64_t>(batch.routing.size()));
  const auto has_routing = block.Add<uint8_t>(static_cast<int64_t>(batch.has_routing.size()));
  if (absl::Status status = block.Reserve(); !status.ok()) return status;
  Put(block, ids, batch.tokens);
  Put(block, order, runs.order);
  Put(block, begin, runs.begin);
  Put(block, cu_seqlens, batch.cu_seqlens);
  Put(block, rows, batch.loss_rows);
  Put(block, targets, batch.targets);
  Put(block, routing, batch.routing);
  Put(block, has_routing, batch.has_routing);
  std::fill_n(block.Host(inverse_temperature), R, 1.0f / temperature);
  int64_t longest = 0;
  for (size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
    const int32_t first = batch.cu_seqlens[i], last = batch.cu_seqlens[i + 1];
    for (int32_t row = first; row < last; ++row) block.Host(positions)[row] = row - first;
    longest = std::max<int64_t>(longest, last - first);
  }
  packed = {.tokens = T,
            .loss_rows = R,
            .sequences = static_cast<int64_t>(batch.cu_seqlens.size()) - 1,
            .max_length = longest,
            .embedding_runs = static_cast<int64_t>(runs.begin.size()) - 1,
            .ids = block.Device(ids),
            .positions = block.Device(positions),
            .cu_seqlens = block.Device(cu_seqlens),
            .rows = block.Device(rows),
            .targets = block.Device(targets),
            .inverse_temperature = block.Device(inverse_temperature),
            .run_order = block.Device(order),
            .run_begin = block.Device(begin),
            .given_routing = reinterpret_cast<const uint8_t*>(batch.routing.empty() ? nullptr : block.Device(routing)),
            .has_routing = block.Device(has_routing)};
  return block.Copy(*stream_owner);
}

void DeviceDecoder::Impl::RunPackedLayer(Calls& run, const DeviceWeights& weights, int64_t layer, LayerExtent extent) {
  const int64_t E = config.head_dim;
  const auto attend = [&](const QkvViews& qkv, const LayerTensors& t) {
    run(Rope(qkv.q, config.num_heads, E, packed.positions, RopeTable(), /*backward=*/false, stream), "rotation");
    run(Rope(qkv.k, config.num_kv_heads, E, packed.positions, RopeTable(), /*backward=*/false, stream), "rotation");
    run(AttentionPacked(attention_shape, qkv.q, qkv.k, qkv.v, packed.cu_seqlens, packed.sequences, packed.max_length,
                        numerics, t.attention, t.lse, stream),
        "attention");
  };
  RunLayer(run, weights, layer, training.layers[static_cast<size_t>(layer)], attend, extent);
  computed_layer = layer;
}

// log_prob, entropy, counts and record lie behind one another in `results`.
absl::Status DeviceDecoder::Impl::ReadPacked(float* log_prob, float* entropy, RoutingTrace* trace) {
  const auto R = static_cast<size_t>(packed.loss_rows);
  const size_t record_bytes = trace == nullptr ? 0 : static_cast<size_t>(packed.tokens) * routing_shape.row_bytes();
  const size_t bytes = sizeof(RoutingCounts) + 2 * R * sizeof(float) + record_bytes;
  if (results.bytes() < bytes) {
    results = PinnedBuffer();
    auto grown = PinnedBuffer::Allocate(bytes, "a batch's results");
    if (!grown.ok()) return grown.status();
    results = *std::move(grown);
  }
  auto* const counts = results.As<RoutingCounts>();
  auto* const floats = reinterpret_cast<float*>(counts + 1);
  auto* const record = reinterpret_cast<char*>(floats + 2 * R);
  absl::Status status = stream_owner->CopyToHost(floats, training.log_prob, R * sizeof(float));
  if (status.ok()) status = stream_owner->CopyToHost(floats + R, training.entropy, R * sizeof(float));
  if (status.ok() && trace != nullptr) status = stream_owner->CopyToHost(counts, training.counts, sizeof(*counts));
  if (status.ok() && record_bytes > 0) status = stream_owner->CopyToHost(record, training.record, record_bytes);
  if (status.ok()) status = stream_owner->Wait("the forward pass");
  if (!status.ok()) return status;
  std::copy_n(floats, R, log_prob);
  if (entropy != nullptr) std::copy_n(floats + R, R, entropy);
  if (trace != nullptr) {
    *trace = {.experts = std::string(record, record_bytes), .choices = counts->choices, .differing = counts->differing};
  }
  return absl::OkStatus();
}

absl::Status DeviceDecoder::ForwardPacked(const DeviceWeights& weights, const PackedBatch& batch, float temperature,
                                          bool recompute, float* log_prob, float* entropy, RoutingTrace* trace) {
  Impl& m = *impl_;
  m.CheckWeights(weights);
  CheckBatch(m.config, m.routing_shape, batch);
  m.forward_tokens = m.forward_loss_rows = -1;
  const auto T = static_cast<int64_t>(batch.tokens.size()), R = static_cast<int64_t>(batch.loss_rows.size());
  m.recompute = recompute;
  m.computed_layer = -1;
  if (trace != nullptr) *trace = {};
  if (T > 0) {
    Carver counter(nullptr, kDeviceAlignment);
    m.CarveTraining(T, R, recompute, counter, m.training);
    if (absl::Status status = Grow(m.training_block, counter.bytes(), "activations of training"); !status.ok()) {
      return status;
    }
    Carver carver(m.training_block.data(), kDeviceAlignment);
    m.CarveTraining(T, R, recompute, carver, m.training);
    if (absl::Status status = m.StagePacked(batch, temperature); !status.ok()) return status;

    Calls run;
    Training& t = m.training;
    run(cudaMemsetAsync(t.counts, 0, sizeof(RoutingCounts), m.stream), "clearing the routing's counts");
    m.router = {.given = m.packed.given_routing,
                .has_given = m.packed.has_routing,
                .replay = batch.replay_routing,
                .counts = trace == nullptr ? nullptr : t.counts,
                .record = trace == nullptr || m.routing_shape.layers == 0 ? nullptr : t.record};
    run(Embedding(m.packed.ids, T, weights.embed(), t.streams.front(), m.stream), "the embedding");
    for (int64_t layer = 0; layer < m.config.num_layers; ++layer) {
      m.RunPackedLayer(run, weights, layer, LayerExtent::kThroughOutput);
    }
    m.router = {};
    if (R > 0) {
      run(GatherRows(t.streams.back(), m.packed.rows, /*scale=*/nullptr, t.loss_input, m.stream), "the loss rows");
      run(RmsNorm(t.loss_input, {}, weights.final_norm(), m.config.rms_norm_eps, {}, t.loss_normed, t.loss_rstd,
                  m.stream),
          "the final norm");
      LogProb(run, *m.gemm, {t.loss_normed, m.packed.targets, m.packed.inverse_temperature}, weights.output(),
              t.log_prob_scratch, t.log_prob, t.entropy, t.loss_lse, m.stream);
    }
    absl::Status status = run.status();
    if (status.ok()) status = m.ReadPacked(log_prob, entropy, trace);
    if (!status.ok()) return status;
  }
  m.forward_tokens = T;
  m.forward_loss_rows = R;
  return absl::OkStatus();
}

}  // namespace lockstep::cuda
