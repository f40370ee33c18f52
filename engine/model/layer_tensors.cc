#include "engine/model/layer_tensors.h"

#include <cmath>

namespace lockstep {

QkvViews SplitQkv(const ModelConfig& config, const Tensor& qkv) {
  const int64_t query = config.num_heads * config.head_dim, kv = config.num_kv_heads * config.head_dim;
  return {.q = qkv.Cols(0, query), .k = qkv.Cols(query, kv), .v = qkv.Cols(query + kv, kv)};
}

QkvViews AttentionInputs(const ModelConfig& config, const LayerTensors& tensors) {
  const int64_t query = config.num_heads * config.head_dim, kv = config.num_kv_heads * config.head_dim;
  return {.q = tensors.qk.Cols(0, query), .k = tensors.qk.Cols(query, kv), .v = tensors.qkv.Cols(query + kv, kv)};
}

AttentionShape AttentionShapeOf(const ModelConfig& config) {
  return {.num_heads = config.num_heads,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim)))};
}

std::vector<int64_t> ExpertLayersBelow(const ModelConfig& config) {
  std::vector<int64_t> below;
  for (int64_t layer = 0, experts = 0; layer < config.num_layers; ++layer) {
    below.push_back(experts);
    experts += config.HasExperts(layer) ? 1 : 0;
  }
  return below;
}

}  // namespace lockstep
