// What a config must satisfy, and its digest.
#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/digest.h"
#include "engine/model/families/families.h"
#include "engine/model/model.h"

namespace lockstep {
namespace {

constexpr int64_t kMaxHeadDim = 256;       // attention keeps one head's row in registers and stack
constexpr int64_t kMaxExtent = 1 << 24;    // any single extent: keeps products far inside int64
constexpr int64_t kMaxParams = 1LL << 40;  // elements of the arena
constexpr int64_t kMaxTensors = 1 << 16;   // layers times experts: a layout is a few hundred bytes for each
constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kMaxExpertsPerToken = 64;

absl::Status CheckExtent(const char* field, int64_t value) {
  if (value >= 1 && value <= kMaxExtent) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("model config: ", field, " is ", value, ", must be 1 to ", kMaxExtent, "; check config.json"));
}

absl::Status ValidateRopeScaling(const RopeScaling& scaling) {
  if (!scaling.llama3) return absl::OkStatus();
  if (!(scaling.factor >= 1 && scaling.factor <= 1e6f)) {
    return absl::InvalidArgumentError(absl::StrCat("model config: rope_scaling's factor is ", scaling.factor,
                                                   ", must be 1 to 1000000; check config.json"));
  }
  if (!(scaling.low_freq_factor > 0 && scaling.high_freq_factor > scaling.low_freq_factor &&
        std::isfinite(scaling.high_freq_factor))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model config: rope_scaling's low_freq_factor is ", scaling.low_freq_factor,
        ", must be above 0 and below high_freq_factor (", scaling.high_freq_factor, "); check config.json"));
  }
  return CheckExtent("rope_scaling's original_max_position_embeddings", scaling.original_max_positions);
}

absl::Status ValidateExperts(const ModelConfig& config) {
  if (config.num_experts == 0) return absl::OkStatus();
  if (config.num_experts < 1 || config.num_experts > kMaxExperts) {
    return absl::InvalidArgumentError(absl::StrCat("model config: num_experts is ", config.num_experts,
                                                   ", must be 1 to ", kMaxExperts, "; check config.json"));
  }
  const int64_t most = std::min(config.num_experts, kMaxExpertsPerToken);
  if (config.experts_per_token < 1 || config.experts_per_token > most) {
    return absl::InvalidArgumentError(absl::StrCat("model config: num_experts_per_tok is ", config.experts_per_token,
                                                   ", must be 1 to ", most, "; check config.json"));
  }
  if (absl::Status status = CheckExtent("moe_intermediate_size", config.moe_intermediate_size); !status.ok()) {
    return status;
  }
  return CheckExtent("decoder_sparse_step", config.decoder_sparse_step);
}

}  // namespace

bool ModelConfig::HasExperts(int64_t layer) const {
  if (num_experts == 0 || (layer + 1) % decoder_sparse_step != 0) return false;
  return std::find(mlp_only_layers.begin(), mlp_only_layers.end(), layer) == mlp_only_layers.end();
}

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
  if (FindFamily(architecture) == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("model config: architectures is '", architecture,
                                                   "', supported are ", SupportedArchitectures(),
                                                   "; take a model of one of these families"));
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
  if (absl::Status status = ValidateRopeScaling(rope_scaling); !status.ok()) return status;
  if (absl::Status status = ValidateExperts(*this); !status.ok()) return status;
  const double attention = static_cast<double>(hidden_size) * (qkv_rows() + num_heads * head_dim);
  const double mlp = 3.0 * hidden_size * std::max(intermediate_size, num_experts * moe_intermediate_size);
  const double elements = 2.0 * vocab_size * hidden_size + (attention + mlp) * num_layers;
  if (elements > static_cast<double>(kMaxParams)) {
    return absl::InvalidArgumentError(absl::StrCat("model config: the shape has ", elements, " parameters, at most ",
                                                   kMaxParams, "; check config.json"));
  }
  if (num_layers * std::max<int64_t>(1, num_experts) > kMaxTensors) {
    return absl::InvalidArgumentError(absl::StrCat("model config: ", num_layers, " layers of ", num_experts,
                                                   " experts are too many tensors, at most ", kMaxTensors,
                                                   " together; check config.json"));
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
  std::string shape = absl::StrCat(
      architecture, " V", vocab_size, " D", hidden_size, " L", num_layers, " H", num_heads, " G", num_kv_heads, " E",
      head_dim, " F", intermediate_size, " eps", absl::Hex(std::bit_cast<uint32_t>(rms_norm_eps)), " theta",
      absl::Hex(std::bit_cast<uint32_t>(rope_theta)), " bias", qkv_bias, " tied", tie_word_embeddings);
  if (qk_norm) shape += " qk_norm";
  if (rope_scaling.llama3) {
    absl::StrAppend(&shape, " llama3 ", absl::Hex(std::bit_cast<uint32_t>(rope_scaling.factor)), " ",
                    absl::Hex(std::bit_cast<uint32_t>(rope_scaling.low_freq_factor)), " ",
                    absl::Hex(std::bit_cast<uint32_t>(rope_scaling.high_freq_factor)), " ",
                    rope_scaling.original_max_positions);
  }
  if (num_experts > 0) {
    absl::StrAppend(&shape, " N", num_experts, " K", experts_per_token, " M", moe_intermediate_size, " norm",
                    norm_topk_prob);
    for (int64_t layer = 0; layer < num_layers; ++layer) shape += HasExperts(layer) ? "e" : "d";
  }
  return DigestHex(Digest(shape.data(), shape.size()));
}

}  // namespace lockstep
