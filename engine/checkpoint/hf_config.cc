// config.json of Hugging Face folders, both ways.
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/base/process.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/model/families/families.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kMaxExtent = int64_t{1} << 32;  // ModelConfig::Validate has the exact limits
constexpr size_t kMaxEosIds = 64;
constexpr size_t kMaxDenseLayers = 1024;

absl::Status Bad(const std::string& path, const std::string& message) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", message));
}

absl::Status ReadArchitecture(const json& root, const std::string& path, ModelConfig* config) {
  const json list = root.value("architectures", json());
  if (!list.is_array() || list.size() != 1 || !list[0].is_string()) {
    return Bad(path, "architectures is " + PrintableJson(list) + ", must be an array of one name");
  }
  config->architecture = list[0].get<std::string>();
  if (FindFamily(config->architecture) == nullptr) {
    return Bad(path, "architecture \"" + Printable(config->architecture) +
                         "\" is not supported; these are: " + SupportedArchitectures());
  }
  return absl::OkStatus();
}

// What the decoder does not compute must be absent or switched off.
absl::Status RefuseUnsupported(const json& root, const std::string& path) {
  const auto activation = JsonString(root, "hidden_act", "silu", path);
  if (!activation.ok()) return activation.status();
  if (*activation != "silu")
    return Bad(path, "hidden_act is \"" + Printable(*activation) + "\", only silu is supported");
  for (const char* key : {"attention_bias", "mlp_bias", "use_sliding_window"}) {
    const auto set = JsonBool(root, key, false, path);
    if (!set.ok()) return set.status();
    if (*set) return Bad(path, absl::StrCat(key, " is true, which is not supported; take a model without it"));
  }
  if (const json quantized = root.value("quantization_config", json()); !quantized.is_null()) {
    return Bad(path, "quantization_config is set; quantized weights are not supported, take the fp16 or bf16 model");
  }
  const json layer_types = root.value("layer_types", json());
  if (!layer_types.is_null() && !layer_types.is_array()) {
    return Bad(path, "layer_types is " + PrintableJson(layer_types) + ", must be an array");
  }
  for (const json& type : layer_types) {
    if (type != "full_attention")
      return Bad(path, "layer_types has " + PrintableJson(type) + ", only full_attention is supported");
  }
  return absl::OkStatus();
}

absl::Status RequireFullRotary(const json& object, const std::string& path) {
  const auto rotary = JsonNumber(object, "partial_rotary_factor", 1, path);
  if (!rotary.ok()) return rotary.status();
  if (*rotary != 1) return Bad(path, absl::StrCat("partial_rotary_factor is ", *rotary, ", only 1 is supported"));
  return absl::OkStatus();
}

// The parameters of rope_type "llama3", all of them required.
absl::Status ReadLlama3Scaling(const json& rope, const std::string& path, RopeScaling* scaling) {
  const std::pair<const char*, float*> numbers[] = {{"factor", &scaling->factor},
                                                    {"low_freq_factor", &scaling->low_freq_factor},
                                                    {"high_freq_factor", &scaling->high_freq_factor}};
  for (const auto& [key, value] : numbers) {
    const auto number = JsonNumber(rope, key, -1, path);
    if (!number.ok()) return number.status();
    if (*number == -1) return Bad(path, absl::StrCat(key, " is missing in the llama3 rope parameters"));
    *value = static_cast<float>(*number);
  }
  const auto context = JsonInt(rope, "original_max_position_embeddings", 0, 1, kMaxExtent, path);
  if (!context.ok()) return context.status();
  if (*context == 0) return Bad(path, "original_max_position_embeddings is missing in the llama3 rope parameters");
  scaling->original_max_positions = *context;
  scaling->llama3 = true;
  return absl::OkStatus();
}

// rope_theta stands at the top and the scaling in rope_scaling (transformers 4), or both in rope_parameters (5).
absl::Status ReadRope(const json& root, const std::string& path, ModelConfig* config) {
  auto theta = JsonNumber(root, "rope_theta", 10000, path);
  if (!theta.ok()) return theta.status();
  if (absl::Status status = RequireFullRotary(root, path); !status.ok()) return status;
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json rope = root.value(key, json());
    if (rope.is_null()) continue;
    if (!rope.is_object())
      return Bad(path, absl::StrCat(key, " is ", PrintableJson(rope), ", must be an object or null"));
    const auto old_name = JsonString(rope, "type", "default", path);
    const auto type = JsonString(rope, "rope_type", old_name.ok() ? *old_name : "default", path);
    if (!type.ok()) return type.status();
    if (*type == "llama3") {
      if (absl::Status status = ReadLlama3Scaling(rope, path, &config->rope_scaling); !status.ok()) return status;
    } else if (*type != "default") {
      return Bad(path, absl::StrCat(key, " of type \"", Printable(*type),
                                    "\" is not supported; default and llama3 are. A model that works without it up to "
                                    "a shorter context runs with ",
                                    key, " null"));
    }
    if (absl::Status status = RequireFullRotary(rope, path); !status.ok()) return status;
    theta = JsonNumber(rope, "rope_theta", *theta, path);
    if (!theta.ok()) return theta.status();
  }
  config->rope_theta = static_cast<float>(*theta);
  return absl::OkStatus();
}

// The experts of a mixture. transformers 4 writes num_experts, 5 num_local_experts.
absl::Status ReadExperts(const json& root, const std::string& path, ModelConfig* config) {
  const auto old_count = JsonInt(root, "num_experts", 0, 0, kMaxExtent, path);
  const auto count = JsonInt(root, "num_local_experts", old_count.ok() ? *old_count : 0, 0, kMaxExtent, path);
  const auto chosen = JsonInt(root, "num_experts_per_tok", 8, 1, kMaxExtent, path);
  const auto width = JsonInt(root, "moe_intermediate_size", 768, 1, kMaxExtent, path);
  const auto step = JsonInt(root, "decoder_sparse_step", 1, 1, kMaxExtent, path);
  const auto normalize = JsonBool(root, "norm_topk_prob", false, path);
  for (const absl::Status& status :
       {old_count.status(), count.status(), chosen.status(), width.status(), step.status(), normalize.status()}) {
    if (!status.ok()) return status;
  }
  if (*count == 0) return Bad(path, "num_experts is missing or 0, which a mixture of experts cannot have");
  if (*old_count != 0 && *old_count != *count) {
    return Bad(path, absl::StrCat("num_experts is ", *old_count, " and num_local_experts is ", *count,
                                  ", which are one number"));
  }
  config->num_experts = *count;
  config->experts_per_token = *chosen;
  config->moe_intermediate_size = *width;
  config->decoder_sparse_step = *step;
  config->norm_topk_prob = *normalize;
  const json dense = root.value("mlp_only_layers", json());
  if (dense.is_null()) return absl::OkStatus();
  if (!dense.is_array() || dense.size() > kMaxDenseLayers) {
    return Bad(path, absl::StrCat("mlp_only_layers is ", PrintableJson(dense), ", must be an array of at most ",
                                  kMaxDenseLayers, " layer numbers"));
  }
  for (const json& layer : dense) {
    if (!layer.is_number_unsigned() || layer.get<uint64_t>() > INT32_MAX) {
      return Bad(path, "mlp_only_layers has " + PrintableJson(layer) + ", must have layer numbers");
    }
    config->mlp_only_layers.push_back(layer.get<int32_t>());
  }
  return absl::OkStatus();
}

// One id or a list of them; ids that are already there are not added again.
absl::Status ReadEos(const json& root, const std::string& path, ModelConfig* config) {
  const json value = root.value("eos_token_id", json());
  const json list = value.is_null() ? json::array() : value.is_array() ? value : json::array({value});
  if (list.size() > kMaxEosIds)
    return Bad(path, absl::StrCat("eos_token_id has ", list.size(), " ids, limit ", kMaxEosIds));
  for (const json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX) {
      return Bad(path, "eos_token_id is " + PrintableJson(id) + ", must be a token id or a list of them");
    }
    bool known = false;
    for (const int32_t other : config->eos_token_ids) known = known || other == id.get<int32_t>();
    if (!known) config->eos_token_ids.push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

absl::StatusOr<json> ParseObject(std::string_view text, const std::string& path) {
  auto root = ParseJson(text, path);
  if (root.ok() && !root->is_object()) return Bad(path, "must be a JSON object");
  return root;
}

// The double that prints as the float does: 1e-06f is written as 1e-06.
double Shortest(float value) {
  char buffer[32];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer) - 1, value);
  *result.ptr = '\0';
  return std::strtod(buffer, nullptr);
}

}  // namespace

absl::StatusOr<ModelConfig> ParseHfConfig(std::string_view text, const std::string& path) {
  const absl::StatusOr<json> root = ParseObject(text, path);
  if (!root.ok()) return root.status();
  ModelConfig config;
  if (absl::Status status = ReadArchitecture(*root, path, &config); !status.ok()) return status;
  if (absl::Status status = RefuseUnsupported(*root, path); !status.ok()) return status;
  if (absl::Status status = ReadRope(*root, path, &config); !status.ok()) return status;
  if (absl::Status status = ReadEos(*root, path, &config); !status.ok()) return status;
  const ModelFamily& family = *FindFamily(config.architecture);
  struct Field {
    const char* key;
    int64_t* value;
    int64_t fallback;  // 0: required
  };
  const Field fields[] = {{"vocab_size", &config.vocab_size, 0},
                          {"hidden_size", &config.hidden_size, 0},
                          {"num_hidden_layers", &config.num_layers, 0},
                          {"num_attention_heads", &config.num_heads, 0},
                          {"intermediate_size", &config.intermediate_size, 0},
                          {"max_position_embeddings", &config.max_position_embeddings, family.default_max_positions}};
  for (const Field& field : fields) {
    const auto value = JsonInt(*root, field.key, field.fallback, 1, kMaxExtent, path);
    if (!value.ok()) return value.status();
    if (*value == 0) return Bad(path, absl::StrCat(field.key, " is missing"));
    *field.value = *value;
  }
  const auto kv_heads = JsonInt(*root, "num_key_value_heads", config.num_heads, 1, kMaxExtent, path);
  const auto head_dim = JsonInt(*root, "head_dim", family.default_head_dim, 1, kMaxExtent, path);
  const auto bos = JsonInt(*root, "bos_token_id", -1, 0, INT32_MAX, path);
  const auto eps = JsonNumber(*root, "rms_norm_eps", 1e-6, path);
  const auto tied = JsonBool(*root, "tie_word_embeddings", false, path);
  for (const absl::Status& status : {kv_heads.status(), head_dim.status(), bos.status(), eps.status(), tied.status()}) {
    if (!status.ok()) return status;
  }
  if (*head_dim == 0 && config.hidden_size % config.num_heads != 0) {
    return Bad(path, absl::StrCat("hidden_size is ", config.hidden_size, ", must be a multiple of num_attention_heads ",
                                  config.num_heads));
  }
  config.num_kv_heads = *kv_heads;
  config.head_dim = *head_dim != 0 ? *head_dim : config.hidden_size / config.num_heads;
  config.bos_token_id = static_cast<int32_t>(*bos);
  config.rms_norm_eps = static_cast<float>(*eps);
  config.tie_word_embeddings = *tied;
  config.qkv_bias = family.qkv_bias;
  config.qk_norm = family.qk_norm;
  if (family.experts) {
    if (absl::Status status = ReadExperts(*root, path, &config); !status.ok()) return status;
  }
  if (absl::Status status = config.Validate(); !status.ok()) {
    return Bad(path, std::string(status.message()));
  }
  return config;
}

absl::StatusOr<ModelConfig> ReadHfConfig(const std::string& dir) {
  const std::string path = dir + "/config.json";
  const auto text = ReadFile(path, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  auto config = ParseHfConfig(*text, path);
  if (!config.ok()) return config;
  // Chat models name further end tokens here, and generation must stop at them too.
  const std::string generation_path = dir + "/generation_config.json";
  const auto generation_text = ReadFile(generation_path, kMaxConfigBytes);
  if (absl::IsNotFound(generation_text.status())) return config;
  if (!generation_text.ok()) return generation_text.status();
  const auto generation = ParseObject(*generation_text, generation_path);
  if (!generation.ok()) return generation.status();
  if (absl::Status status = ReadEos(*generation, generation_path, &*config); !status.ok()) return status;
  if (absl::Status status = config->Validate(); !status.ok())
    return Bad(generation_path, std::string(status.message()));
  return config;
}

std::string HfConfigJson(const ModelConfig& config, DType dtype) {
  const ModelFamily* family = FindFamily(config.architecture);
  nlohmann::ordered_json root;
  root["architectures"] = {config.architecture};
  root["model_type"] = family != nullptr ? family->model_type : "";
  root["attention_dropout"] = 0.0;
  root["bos_token_id"] = config.bos_token_id >= 0 ? json(config.bos_token_id) : json();
  if (config.eos_token_ids.size() == 1) {
    root["eos_token_id"] = config.eos_token_ids[0];
  } else {
    root["eos_token_id"] = config.eos_token_ids.empty() ? json() : json(config.eos_token_ids);
  }
  root["head_dim"] = config.head_dim;
  root["hidden_act"] = "silu";
  root["hidden_size"] = config.hidden_size;
  root["initializer_range"] = 0.02;
  root["intermediate_size"] = config.intermediate_size;
  root["max_position_embeddings"] = config.max_position_embeddings;
  root["num_attention_heads"] = config.num_heads;
  root["num_hidden_layers"] = config.num_layers;
  root["num_key_value_heads"] = config.num_kv_heads;
  root["rms_norm_eps"] = Shortest(config.rms_norm_eps);
  root["rope_scaling"] = nullptr;
  if (const RopeScaling& scaling = config.rope_scaling; scaling.llama3) {
    root["rope_scaling"] = {{"factor", Shortest(scaling.factor)},
                            {"high_freq_factor", Shortest(scaling.high_freq_factor)},
                            {"low_freq_factor", Shortest(scaling.low_freq_factor)},
                            {"original_max_position_embeddings", scaling.original_max_positions},
                            {"rope_type", "llama3"}};
  }
  root["rope_theta"] = Shortest(config.rope_theta);
  root["tie_word_embeddings"] = config.tie_word_embeddings;
  root["torch_dtype"] = dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
  root["use_cache"] = true;
  root["vocab_size"] = config.vocab_size;
  if (config.num_experts > 0) {
    root["decoder_sparse_step"] = config.decoder_sparse_step;
    root["mlp_only_layers"] = config.mlp_only_layers;
    root["moe_intermediate_size"] = config.moe_intermediate_size;
    root["norm_topk_prob"] = config.norm_topk_prob;
    root["num_experts"] = config.num_experts;
    root["num_experts_per_tok"] = config.experts_per_token;
    root["output_router_logits"] = false;
  }
  // Written out, because the families differ in what they take when it is absent.
  if (!config.qkv_bias) root["attention_bias"] = false;
  if (config.architecture == "LlamaForCausalLM") {
    root["mlp_bias"] = false;
  } else {
    root["use_sliding_window"] = false;
    root["sliding_window"] = nullptr;
    root["max_window_layers"] = config.num_layers;
  }
  return root.dump(2) + "\n";
}

}  // namespace lockstep
