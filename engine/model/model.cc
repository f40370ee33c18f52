#include "engine/model/model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "engine/base/check.h"
#include "engine/base/philox.h"

namespace lockstep {
namespace {

// The storage of one parameter: exactly one of the two is set.
struct Slot {
  PackedMatrix* matrix = nullptr;
  Buffer* vector = nullptr;
};

Slot FindSlot(Weights& weights, int param) {
  const ParamLayout& layout = weights.layout;
  LOCKSTEP_CHECK(param >= 0 && param < static_cast<int>(layout.params.size()), "parameter index out of range");
  if (param == layout.embed) return {.matrix = &weights.embed};
  if (param == layout.final_norm) return {.vector = &weights.final_norm};
  if (param == layout.lm_head) return {.matrix = &weights.lm_head};
  const int64_t index = layout.params[param].layer;
  LOCKSTEP_CHECK(index >= 0, "parameter is not in the layout's order");
  const ParamLayout::LayerParams& at = layout.layers[index];
  LayerWeights& layer = weights.layers[index];
  if (param == at.input_norm) return {.vector = &layer.input_norm};
  if (param == at.qkv) return {.matrix = &layer.qkv};
  if (param == at.qkv_bias) return {.vector = &layer.qkv_bias};
  if (param == at.q_norm) return {.vector = &layer.q_norm};
  if (param == at.k_norm) return {.vector = &layer.k_norm};
  if (param == at.o) return {.matrix = &layer.o};
  if (param == at.post_norm) return {.vector = &layer.post_norm};
  if (param == at.gate_up) return {.matrix = &layer.gate_up};
  if (param == at.down) return {.matrix = &layer.down};
  if (param == at.router) return {.matrix = &layer.router};
  const int expert = (param - at.experts) / 2;
  LOCKSTEP_CHECK(at.experts >= 0 && param >= at.experts && expert < static_cast<int>(layer.experts.size()),
                 "parameter is not in the layout's order");
  ExpertWeights& weight = layer.experts[expert];
  return {.matrix = param == at.expert_gate_up(expert) ? &weight.gate_up : &weight.down};
}

// Philox + Box-Muller (1958): element i of parameter p depends on (seed, p, i) alone. Elements [first, first + count).
void FillNormal(uint64_t seed, uint64_t param, float std, int64_t first, int64_t count, float* out) {
  for (int64_t i = first / 4 * 4; i < first + count; i += 4) {
    const std::array<uint32_t, 4> bits = Philox4x32(seed, static_cast<uint64_t>(i / 4), param);
    float values[4];
    for (int pair = 0; pair < 2; ++pair) {
      const float radius = std * std::sqrt(-2.0f * std::log(UniformOpen(bits[2 * pair])));
      const float angle = 2.0f * std::numbers::pi_v<float> * UniformOpen(bits[2 * pair + 1]);
      values[2 * pair] = radius * std::cos(angle);
      values[2 * pair + 1] = radius * std::sin(angle);
    }
    for (int64_t j = std::max(i, first); j < std::min(i + 4, first + count); ++j) out[j - first] = values[j - i];
  }
}

}  // namespace

Weights::Weights(const ModelConfig& config, DType dtype) : WeightSet(config, dtype), layout(config) {
  const int64_t D = config.hidden_size, F = config.intermediate_size;
  const int64_t query_rows = config.num_heads * config.head_dim;
  const size_t vector_bytes = D * DTypeSize(dtype);
  embed = PackedMatrix(dtype, config.vocab_size, D);
  layers.resize(config.num_layers);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    LayerWeights& layer = layers[i];
    layer.input_norm = Buffer(vector_bytes);
    layer.post_norm = Buffer(vector_bytes);
    if (config.qkv_bias) layer.qkv_bias = Buffer(config.qkv_rows() * DTypeSize(dtype));
    layer.qkv = PackedMatrix(dtype, config.qkv_rows(), D);
    if (config.qk_norm) layer.q_norm = Buffer(config.head_dim * DTypeSize(dtype));
    if (config.qk_norm) layer.k_norm = Buffer(config.head_dim * DTypeSize(dtype));
    layer.o = PackedMatrix(dtype, D, query_rows);
    if (!config.HasExperts(i)) {
      layer.gate_up = PackedMatrix(dtype, 2 * F, D);
      layer.down = PackedMatrix(dtype, D, F);
      continue;
    }
    layer.router = PackedMatrix(dtype, config.num_experts, D);
    layer.experts.resize(config.num_experts);
    for (ExpertWeights& expert : layer.experts) {
      expert.gate_up = PackedMatrix(dtype, 2 * config.moe_intermediate_size, D);
      expert.down = PackedMatrix(dtype, D, config.moe_intermediate_size);
    }
  }
  final_norm = Buffer(vector_bytes);
  if (!config.tie_word_embeddings) lm_head = PackedMatrix(dtype, config.vocab_size, D);
}

void Weights::SetParamRows(int param, int64_t row_begin, const Tensor& rows) {
  const Slot slot = FindSlot(*this, param);
  if (slot.matrix != nullptr) return slot.matrix->SetRows(row_begin, rows);
  LOCKSTEP_CHECK(rows.rows == 1 && row_begin >= 0 && row_begin + rows.cols <= layout.params[param].cols,
                 "vector rows out of range");
  char* target = slot.vector->As<char>() + row_begin * DTypeSize(dtype);
  std::vector<float> values(rows.cols);
  ConvertToFloat(rows.dtype, rows.data, values.data(), values.size());
  ConvertFromFloat(dtype, values.data(), target, values.size());
}

void Weights::GetParamRows(int param, int64_t row_begin, const Tensor& rows) const {
  const Slot slot = FindSlot(const_cast<Weights&>(*this), param);  // read only below
  if (slot.matrix != nullptr) return slot.matrix->GetRows(row_begin, rows);
  LOCKSTEP_CHECK(rows.rows == 1 && row_begin >= 0 && row_begin + rows.cols <= layout.params[param].cols,
                 "vector rows out of range");
  const char* source = slot.vector->As<char>() + row_begin * DTypeSize(dtype);
  std::vector<float> values(rows.cols);
  ConvertToFloat(dtype, source, values.data(), values.size());
  ConvertFromFloat(rows.dtype, values.data(), rows.data, values.size());
}

void Weights::SetFromArena(const float* arena) {
  for (int i = 0; i < static_cast<int>(layout.params.size()); ++i) {
    const ParamSpec& spec = layout.params[i];
    SetParamRows(i, 0, Tensor(const_cast<float*>(arena + spec.offset), DType::kF32, spec.rows, spec.cols));
  }
}

void Weights::CopyToArena(float* arena) const {
  for (int i = 0; i < static_cast<int>(layout.params.size()); ++i) {
    const ParamSpec& spec = layout.params[i];
    GetParamRows(i, 0, Tensor(arena + spec.offset, DType::kF32, spec.rows, spec.cols));
  }
}

size_t Weights::bytes() const {
  size_t total = embed.bytes() + final_norm.bytes() + lm_head.bytes();
  for (const LayerWeights& layer : layers) {
    total += layer.input_norm.bytes() + layer.post_norm.bytes() + layer.qkv_bias.bytes() + layer.qkv.bytes() +
             layer.o.bytes() + layer.gate_up.bytes() + layer.down.bytes() + layer.q_norm.bytes() +
             layer.k_norm.bytes() + layer.router.bytes();
    for (const ExpertWeights& expert : layer.experts) total += expert.gate_up.bytes() + expert.down.bytes();
  }
  return total;
}

void InitializeElements(const ModelConfig& config, const ParamLayout& layout, uint64_t seed, float std, int param,
                        int64_t first, int64_t count, float* out) {
  const ParamSpec& spec = layout.params[param];
  if (spec.kind == ParamSpec::Kind::kVector) {
    const bool is_bias = spec.name.ends_with("_bias");
    std::fill(out, out + count, is_bias ? 0.0f : 1.0f);
    return;
  }
  // Two residual writes a layer: their sum over the depth keeps the variance of one (GPT-2, Radford et al. 2019).
  const float residual_std = std / std::sqrt(2.0f * static_cast<float>(config.num_layers));
  const bool writes_residual = spec.name.ends_with(".o") || spec.name.ends_with(".down");
  FillNormal(seed, static_cast<uint64_t>(param), writes_residual ? residual_std : std, first, count, out);
}

void InitializeArena(const ModelConfig& config, uint64_t seed, float std, float* arena) {
  const ParamLayout layout(config);
  for (int i = 0; i < static_cast<int>(layout.params.size()); ++i) {
    const ParamSpec& spec = layout.params[i];
    InitializeElements(config, layout, seed, std, i, 0, spec.size(), arena + spec.offset);
  }
}

}  // namespace lockstep
