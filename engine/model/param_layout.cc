// The canonical order of the parameters and their Hugging Face names.
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/families/families.h"
#include "engine/model/model.h"

namespace lockstep {
namespace {

// Appends parameters and their Hugging Face names in the canonical order.
class LayoutBuilder {
 public:
  explicit LayoutBuilder(ParamLayout* layout) : layout_(layout) {}

  // What is added from here on belongs to this layer; -1: to none.
  void SetLayer(int64_t layer) { layer_ = layer; }
  int Add(std::string name, ParamSpec::Kind kind, int64_t rows, int64_t cols) {
    const bool decay = kind != ParamSpec::Kind::kVector;
    layout_->params.push_back({std::move(name), kind, rows, cols, layout_->total_size, decay, layer_});
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
        {std::move(name), static_cast<int>(layout_->params.size()) - 1, next_row_, std::move(shape), "", {}, 0});
    next_row_ += rows;
  }
  // The last tensor may also be rows of a tensor of all experts.
  void Stacked(std::string name, std::vector<int64_t> shape, int64_t row) {
    HfTensor& tensor = layout_->hf_tensors.back();
    tensor.stacked_name = std::move(name);
    tensor.stacked_shape = std::move(shape);
    tensor.stacked_row = row;
  }

 private:
  ParamLayout* layout_;
  int64_t next_row_ = 0;
  int64_t layer_ = -1;
};

// The parts of one layer in their order. `theirs` is "model.layers.N.".
class LayerBuilder {
 public:
  LayerBuilder(const ModelConfig& config, int64_t layer, LayoutBuilder* build)
      : config_(config),
        names_(Names(config)),
        ours_(absl::StrCat("layers.", layer, ".")),
        theirs_(absl::StrCat(names_.layer, layer, ".")),
        build_(*build) {}

  void Attention(ParamLayout::LayerParams* at) {
    const int64_t D = config_.hidden_size, E = config_.head_dim;
    const int64_t query_rows = config_.num_heads * E, kv_rows = config_.num_kv_heads * E;
    at->input_norm = Vector("input_norm", names_.input_norm, D);
    at->qkv = build_.Add(ours_ + "qkv", ParamSpec::Kind::kMatrix, config_.qkv_rows(), D);
    Maps(names_.q, ".weight", query_rows);
    Maps(names_.k, ".weight", kv_rows);
    Maps(names_.v, ".weight", kv_rows);
    if (config_.qkv_bias) {
      at->qkv_bias = build_.Add(ours_ + "qkv_bias", ParamSpec::Kind::kVector, 1, config_.qkv_rows());
      Maps(names_.q, ".bias", query_rows);
      Maps(names_.k, ".bias", kv_rows);
      Maps(names_.v, ".bias", kv_rows);
    }
    if (config_.qk_norm) {
      at->q_norm = Vector("q_norm", names_.q_norm, E);
      at->k_norm = Vector("k_norm", names_.k_norm, E);
    }
    at->o = build_.Add(ours_ + "o", ParamSpec::Kind::kMatrix, D, query_rows);
    Maps(names_.o, ".weight", D);
    at->post_norm = Vector("post_norm", names_.post_norm, D);
  }

  void Mlp(ParamLayout::LayerParams* at) {
    const int64_t D = config_.hidden_size, F = config_.intermediate_size;
    at->gate_up = build_.Add(ours_ + "gate_up", ParamSpec::Kind::kMatrix, 2 * F, D);
    Maps(names_.gate, ".weight", F);
    Maps(names_.up, ".weight", F);
    at->down = build_.Add(ours_ + "down", ParamSpec::Kind::kMatrix, D, F);
    Maps(names_.down, ".weight", D);
  }

  void Experts(ParamLayout::LayerParams* at) {
    const int64_t D = config_.hidden_size, M = config_.moe_intermediate_size, N = config_.num_experts;
    at->router = build_.Add(ours_ + "router", ParamSpec::Kind::kMatrix, N, D);
    Maps(names_.router, ".weight", N);
    for (int64_t e = 0; e < N; ++e) {
      const std::string expert = absl::StrCat(ours_, "experts.", e, "."), prefix = absl::StrCat(names_.experts, e, ".");
      const int gate_up = build_.Add(expert + "gate_up", ParamSpec::Kind::kMatrix, 2 * M, D);
      if (e == 0) at->experts = gate_up;
      Maps(prefix + names_.expert_gate, ".weight", M);
      build_.Stacked(theirs_ + names_.stacked_gate_up, {N, 2 * M, D}, e * 2 * M);
      Maps(prefix + names_.expert_up, ".weight", M);
      build_.Stacked(theirs_ + names_.stacked_gate_up, {N, 2 * M, D}, e * 2 * M + M);
      build_.Add(expert + "down", ParamSpec::Kind::kMatrix, D, M);
      Maps(prefix + names_.expert_down, ".weight", D);
      build_.Stacked(theirs_ + names_.stacked_down, {N, D, M}, e * D);
    }
  }

  static const TensorNames& Names(const ModelConfig& config) {
    static constexpr TensorNames kDefault;
    const ModelFamily* family = FindFamily(config.architecture);
    return family != nullptr ? family->names : kDefault;
  }

 private:
  int Vector(const char* name, const char* their_name, int64_t cols) {
    const int param = build_.Add(ours_ + name, ParamSpec::Kind::kVector, 1, cols);
    Maps(their_name, ".weight", cols);
    return param;
  }
  void Maps(const std::string& name, const char* suffix, int64_t rows) {
    build_.Maps(absl::StrCat(theirs_, name, suffix), rows);
  }

  const ModelConfig& config_;
  const TensorNames& names_;
  const std::string ours_, theirs_;
  LayoutBuilder& build_;
};

}  // namespace

ParamLayout::ParamLayout(const ModelConfig& config) {
  using Kind = ParamSpec::Kind;
  const int64_t D = config.hidden_size;
  const TensorNames& names = LayerBuilder::Names(config);
  LayoutBuilder build(this);
  embed = build.Add("embed", Kind::kEmbedding, config.vocab_size, D);
  build.Maps(absl::StrCat(names.embed, ".weight"), config.vocab_size);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    build.SetLayer(i);
    LayerParams at;
    LayerBuilder layer(config, i, &build);
    layer.Attention(&at);
    if (config.HasExperts(i)) {
      layer.Experts(&at);
    } else {
      layer.Mlp(&at);
    }
    layers.push_back(at);
  }
  build.SetLayer(-1);
  final_norm = build.Add("final_norm", Kind::kVector, 1, D);
  build.Maps(absl::StrCat(names.final_norm, ".weight"), D);
  if (!config.tie_word_embeddings) {
    lm_head = build.Add("lm_head", Kind::kMatrix, config.vocab_size, D);
    build.Maps(absl::StrCat(names.lm_head, ".weight"), config.vocab_size);
  }
}

}  // namespace lockstep
