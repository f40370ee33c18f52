// Named model shapes: for benchmarks, tests and the models that the quickstart makes from scratch.
#ifndef LOCKSTEP_ENGINE_MODEL_SHAPES_H_
#define LOCKSTEP_ENGINE_MODEL_SHAPES_H_

#include "engine/model/model.h"

namespace lockstep {

// Qwen2.5-0.5B: 494 M parameters, of which 136 M are the tied embedding.
inline ModelConfig Qwen25Shape05B() {
  ModelConfig config;
  config.architecture = "Qwen2ForCausalLM";
  config.vocab_size = 151936;
  config.hidden_size = 896;
  config.num_layers = 24;
  config.num_heads = 14;
  config.num_kv_heads = 2;
  config.head_dim = 64;
  config.intermediate_size = 4864;
  config.max_position_embeddings = 32768;
  config.rms_norm_eps = 1e-6f;
  config.rope_theta = 1e6f;
  config.qkv_bias = true;
  config.tie_word_embeddings = true;
  config.eos_token_ids = {151645, 151643};
  return config;
}

// Qwen2.5-1.5B: 1.54 G parameters.
inline ModelConfig Qwen25Shape15B() {
  ModelConfig config = Qwen25Shape05B();
  config.hidden_size = 1536;
  config.num_layers = 28;
  config.num_heads = 12;
  config.num_kv_heads = 2;
  config.head_dim = 128;
  config.intermediate_size = 8960;
  return config;
}

// The quickstart's model: 5.5 M parameters with a vocabulary of 4,096; trains in minutes on two cores.
inline ModelConfig QuickstartShape(int64_t vocab_size = 4096) {
  ModelConfig config;
  config.architecture = "Qwen2ForCausalLM";
  config.vocab_size = vocab_size;
  config.hidden_size = 256;
  config.num_layers = 6;
  config.num_heads = 8;
  config.num_kv_heads = 4;
  config.head_dim = 32;
  config.intermediate_size = 704;
  config.max_position_embeddings = 2048;
  config.rms_norm_eps = 1e-6f;
  config.rope_theta = 10000.0f;
  config.qkv_bias = true;
  config.tie_word_embeddings = true;
  return config;
}

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_SHAPES_H_
