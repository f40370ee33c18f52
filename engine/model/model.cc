#include "engine/model/model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numbers>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/digest.h"
#include "engine/base/philox.h"

namespace lockstep {
namespace {

constexpr int64_t kMaxHeadDim = 256;       // attention keeps one head's row in registers and stack
constexpr int64_t kMaxExtent = 1 << 24;    // any single extent: keeps products far inside int64
constexpr int64_t kMaxParams = 1LL << 40;  // elements of the arena

absl::Status CheckExtent(const char* field, int64_t value) {
  if (value >= 1 && value <= kMaxExtent) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("model config: ", field, " is ", value, ", must be 1 to ", kMaxExtent, "; check config.json"));
}

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
  const int params_per_layer = weights.config.qkv_bias ? 7 : 6;
  const int index = (param - 1) / params_per_layer;
  const ParamLayout::LayerParams& at = layout.layers[index];
  LayerWeights& layer = weights.layers[index];
  if (param == at.input_norm) return {.vector = &layer.input_norm};
  if (param == at.qkv) return {.matrix = &layer.qkv};
  if (param == at.qkv_bias) return {.vector = &layer.qkv_bias};
  if (param == at.o) return {.matrix = &layer.o};
  if (param == at.post_norm) return {.vector = &layer.post_norm};
  if (param == at.gate_up) return {.matrix = &layer.gate_up};
  LOCKSTEP_CHECK(param == at.down, "parameter is not in the layout's order");
  return {.matrix = &layer.down};
}

// Appends parameters and their Hugging Face names in the canonical order.
class LayoutBuilder {
 public:
  explicit LayoutBuilder(ParamLayout* layout) : layout_(layout) {}

  int Add(std::string name, ParamSpec::Kind kind, int64_t rows, int64_t cols) {
    const bool decay = kind != ParamSpec::Kind::kVector;
    layout_->params.push_back({std::move(name), kind, rows, cols, layout_->total_size, decay});
    layout_->total_size += rows * cols;
    next_row_ = 0;
    return static_cast<int>(layout_->params.size()) - 1;
  }
  // The next `rows` rows (of a vector: elements) of the last parameter are the Hugging Face tensor `name`.
  void Maps(std::string name, int64_t rows) {
    const ParamSpec& spec = layout_->params.back();
    std::vector<int64_t> shape = {rows};
    if (spec.kind != ParamSpec::Kind::kVector) shape.push_back(spec.cols);
    layout_->hf_tensors.push_back(
        {std::move(name), static_cast<int>(layout_->params.size()) - 1, next_row_, std::move(shape)});
    next_row_ += rows;
  }

 private:
  ParamLayout* layout_;
  int64_t next_row_ = 0;
};

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

absl::Status ModelConfig::Validate() const {
  const std::pair<const char*, int64_t> extents[] = {{"vocab_size", vocab_size},
                                                     {"hidden_size", hidden_size},
                                                     {"num_hidden_layers", num_layers},
                                                     {"num_attention_heads", num_heads},
                                                     {"num_key_value_heads", num_kv_heads},
                                                     {"head_dim", head_dim},
                                                     {"intermediate_size", intermediate_size},
                                                     {"max_position_embeddings", max_position_embeddings}};
  for (const auto& [field, value] : extents) {
    if (absl::Status status = CheckExtent(field, value); !status.ok()) return status;
  }
  if (architecture != "Qwen2ForCausalLM" && architecture != "LlamaForCausalLM") {
    return absl::InvalidArgumentError(
        absl::StrCat("model config: architectures is '", architecture,
                     "', supported are Qwen2ForCausalLM and LlamaForCausalLM; take a model of one of these families"));
  }
  if (num_heads % num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("model config: num_attention_heads is ", num_heads,
                                                   ", must be a multiple of num_key_value_heads (", num_kv_heads,
                                                   "); check config.json"));
  }
  if (head_dim % 2 != 0 || head_dim > kMaxHeadDim) {
    return absl::InvalidArgumentError(absl::StrCat("model config: head_dim is ", head_dim,
                                                   ", must be even and at most ", kMaxHeadDim, "; check config.json"));
  }
  if (!(rms_norm_eps > 0 && rms_norm_eps < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("model config: rms_norm_eps is ", rms_norm_eps, ", must be between 0 and 1; check config.json"));
  }
  if (!(rope_theta > 1 && std::isfinite(rope_theta))) {
    return absl::InvalidArgumentError(
        absl::StrCat("model config: rope_theta is ", rope_theta, ", must be above 1; check config.json"));
  }
  const double per_layer =
      static_cast<double>(hidden_size) * (qkv_rows() + num_heads * head_dim) + 3.0 * hidden_size * intermediate_size;
  const double elements = 2.0 * vocab_size * hidden_size + per_layer * num_layers;
  if (elements > static_cast<double>(kMaxParams)) {
    return absl::InvalidArgumentError(absl::StrCat("model config: the shape has ", elements, " parameters, at most ",
                                                   kMaxParams, "; check config.json"));
  }
  for (int32_t id : eos_token_ids) {
    if (id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("model config: eos_token_id is ", id,
                                                     ", must be below vocab_size (", vocab_size,
                                                     "); check config.json and generation_config.json"));
    }
  }
  return absl::OkStatus();
}

std::string ModelConfig::Hash() const {
  const std::string shape = absl::StrCat(
      architecture, " V", vocab_size, " D", hidden_size, " L", num_layers, " H", num_heads, " G", num_kv_heads, " E",
      head_dim, " F", intermediate_size, " eps", absl::Hex(std::bit_cast<uint32_t>(rms_norm_eps)), " theta",
      absl::Hex(std::bit_cast<uint32_t>(rope_theta)), " bias", qkv_bias, " tied", tie_word_embeddings);
  return DigestHex(Digest(shape.data(), shape.size()));
}

ParamLayout::ParamLayout(const ModelConfig& config) {
  using Kind = ParamSpec::Kind;
  const int64_t D = config.hidden_size, F = config.intermediate_size;
  const int64_t query_rows = config.num_heads * config.head_dim, kv_rows = config.num_kv_heads * config.head_dim;
  LayoutBuilder build(this);
  embed = build.Add("embed", Kind::kEmbedding, config.vocab_size, D);
  build.Maps("model.embed_tokens.weight", config.vocab_size);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string ours = absl::StrCat("layers.", i, "."), theirs = absl::StrCat("model.layers.", i, ".");
    LayerParams at;
    at.input_norm = build.Add(ours + "input_norm", Kind::kVector, 1, D);
    build.Maps(theirs + "input_layernorm.weight", D);
    at.qkv = build.Add(ours + "qkv", Kind::kMatrix, config.qkv_rows(), D);
    build.Maps(theirs + "self_attn.q_proj.weight", query_rows);
    build.Maps(theirs + "self_attn.k_proj.weight", kv_rows);
    build.Maps(theirs + "self_attn.v_proj.weight", kv_rows);
    if (config.qkv_bias) {
      at.qkv_bias = build.Add(ours + "qkv_bias", Kind::kVector, 1, config.qkv_rows());
      build.Maps(theirs + "self_attn.q_proj.bias", query_rows);
      build.Maps(theirs + "self_attn.k_proj.bias", kv_rows);
      build.Maps(theirs + "self_attn.v_proj.bias", kv_rows);
    }
    at.o = build.Add(ours + "o", Kind::kMatrix, D, query_rows);
    build.Maps(theirs + "self_attn.o_proj.weight", D);
    at.post_norm = build.Add(ours + "post_norm", Kind::kVector, 1, D);
    build.Maps(theirs + "post_attention_layernorm.weight", D);
    at.gate_up = build.Add(ours + "gate_up", Kind::kMatrix, 2 * F, D);
    build.Maps(theirs + "mlp.gate_proj.weight", F);
    build.Maps(theirs + "mlp.up_proj.weight", F);
    at.down = build.Add(ours + "down", Kind::kMatrix, D, F);
    build.Maps(theirs + "mlp.down_proj.weight", D);
    layers.push_back(at);
  }
  final_norm = build.Add("final_norm", Kind::kVector, 1, D);
  build.Maps("model.norm.weight", D);
  if (!config.tie_word_embeddings) {
    lm_head = build.Add("lm_head", Kind::kMatrix, config.vocab_size, D);
    build.Maps("lm_head.weight", config.vocab_size);
  }
}

Weights::Weights(const ModelConfig& config, DType dtype) : config(config), layout(config), dtype(dtype) {
  const int64_t D = config.hidden_size, F = config.intermediate_size;
  const int64_t query_rows = config.num_heads * config.head_dim;
  const size_t vector_bytes = D * DTypeSize(dtype);
  embed = PackedMatrix(dtype, config.vocab_size, D);
  layers.resize(config.num_layers);
  for (LayerWeights& layer : layers) {
    layer.input_norm = Buffer(vector_bytes);
    layer.post_norm = Buffer(vector_bytes);
    if (config.qkv_bias) layer.qkv_bias = Buffer(config.qkv_rows() * DTypeSize(dtype));
    layer.qkv = PackedMatrix(dtype, config.qkv_rows(), D);
    layer.o = PackedMatrix(dtype, D, query_rows);
    layer.gate_up = PackedMatrix(dtype, 2 * F, D);
    layer.down = PackedMatrix(dtype, D, F);
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
             layer.o.bytes() + layer.gate_up.bytes() + layer.down.bytes();
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
