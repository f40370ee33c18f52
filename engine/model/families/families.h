// The model families that the decoder serves. A family is one small file beside this one: what its architecture is
// called in config.json, which of the decoder's parts it has, the defaults of its config and its tensors' names. How to
// add one: docs/howto/add_a_model_family.md.
#ifndef LOCKSTEP_ENGINE_MODEL_FAMILIES_FAMILIES_H_
#define LOCKSTEP_ENGINE_MODEL_FAMILIES_FAMILIES_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace lockstep {

// Hugging Face names. Those of a layer follow "model.layers.N.", those of an expert "model.layers.N." + `experts` +
// "E."; each but the last four is followed by ".weight" (the biases of q, k and v by ".bias").
struct TensorNames {
  const char* embed = "model.embed_tokens";
  const char* final_norm = "model.norm";
  const char* lm_head = "lm_head";
  const char* layer = "model.layers.";
  const char* input_norm = "input_layernorm";
  const char* q = "self_attn.q_proj";
  const char* k = "self_attn.k_proj";
  const char* v = "self_attn.v_proj";
  const char* q_norm = "self_attn.q_norm";
  const char* k_norm = "self_attn.k_norm";
  const char* o = "self_attn.o_proj";
  const char* post_norm = "post_attention_layernorm";
  const char* gate = "mlp.gate_proj";
  const char* up = "mlp.up_proj";
  const char* down = "mlp.down_proj";
  const char* router = "mlp.gate";
  const char* expert_gate = "gate_proj";
  const char* expert_up = "up_proj";
  const char* expert_down = "down_proj";
  // One expert's tensors; and the layout with all experts of a layer in one tensor: [N, 2 F, D] and [N, D, F].
  const char* experts = "mlp.experts.";
  const char* stacked_gate_up = "mlp.experts.gate_up_proj";
  const char* stacked_down = "mlp.experts.down_proj";
};

struct ModelFamily {
  const char* architecture = "";  // config.json: architectures[0]
  const char* model_type = "";    // config.json: model_type
  bool qkv_bias = false;          // q, k and v projections have a bias
  bool qk_norm = false;           // RMSNorm of each head of q and k, before RoPE
  bool experts = false;           // layers may be mixtures of experts
  // What transformers takes when config.json is silent.
  int64_t default_head_dim = 0;  // 0: hidden_size / num_attention_heads
  int64_t default_max_positions = 0;
  TensorNames names = {};
};

// Null when there is no such family.
const ModelFamily* FindFamily(std::string_view architecture);
// "LlamaForCausalLM, Qwen2ForCausalLM, ...", for messages.
std::string SupportedArchitectures();
std::span<const ModelFamily* const> AllFamilies();

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_MODEL_FAMILIES_FAMILIES_H_
