// The shape of a model, and a set of weights as those see it who only pass it on: whose it is and which version. Where
// its bytes are, on the host (Weights of model.h) or on a device, is known to whoever computes with it.
#ifndef LOCKSTEP_ENGINE_MODEL_WEIGHT_SET_H_
#define LOCKSTEP_ENGINE_MODEL_WEIGHT_SET_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/tensor/tensor.h"

namespace lockstep {

// rope_type "llama3" (Llama 3.1): frequencies whose wavelength is beyond original_max_positions / low_freq_factor are
// divided by `factor`, those below original_max_positions / high_freq_factor are kept, and between them the two are
// blended linearly in original_max_positions / wavelength.
struct RopeScaling {
  bool llama3 = false;  // false: plain RoPE, and the rest has no meaning
  float factor = 1;
  float low_freq_factor = 1;
  float high_freq_factor = 4;
  int64_t original_max_positions = 8192;
};

struct ModelConfig {
  std::string architecture;             // "Qwen2ForCausalLM", ...: one of engine/model/families
  int64_t vocab_size = 0;               // V
  int64_t hidden_size = 0;              // D
  int64_t num_layers = 0;               // L
  int64_t num_heads = 0;                // H
  int64_t num_kv_heads = 0;             // G
  int64_t head_dim = 0;                 // E
  int64_t intermediate_size = 0;        // F
  int64_t max_position_embeddings = 0;  // longest sequence in tokens
  float rms_norm_eps = 1e-6f;
  float rope_theta = 10000.0f;
  RopeScaling rope_scaling;
  bool qkv_bias = false;
  bool qk_norm = false;  // RMSNorm over E of each head of q and of k, before RoPE
  bool tie_word_embeddings = false;
  std::vector<int32_t> eos_token_ids;
  int32_t bos_token_id = -1;  // -1: none

  // Mixture of experts; num_experts 0: none, every layer has one MLP of intermediate_size.
  int64_t num_experts = 0;               // N
  int64_t experts_per_token = 0;         // K
  int64_t moe_intermediate_size = 0;     // M: width of one expert
  bool norm_topk_prob = false;           // the K chosen probabilities are scaled to sum to 1
  int64_t decoder_sparse_step = 1;       // layer l (from 0) has experts when (l + 1) % step is 0 ...
  std::vector<int32_t> mlp_only_layers;  // ... and it is not one of these

  int64_t qkv_rows() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
  bool HasExperts(int64_t layer) const;
  // One line that names the field, its value and the limit, or OK.
  absl::Status Validate() const;
  // Digest of the shape fields: equal on every process of a run.
  std::string Hash() const;
};

// Complete, and immutable once it is published to readers.
struct WeightSet {
  WeightSet(ModelConfig config, DType dtype) : config(std::move(config)), dtype(dtype) {}
  virtual ~WeightSet() = default;
  WeightSet(WeightSet&&) = default;  // moved while it is being made, never copied
  WeightSet& operator=(WeightSet&&) = default;

  ModelConfig config;
  DType dtype = DType::kF16;
  uint64_t version = 0;
  uint64_t epoch = 0;
};

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_WEIGHT_SET_H_
