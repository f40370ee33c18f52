// config.json of Hugging Face folders, both ways.
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/base/process.h"
#include "engine/checkpoint/hf_folder.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kMaxExtent = int64_t{1} << 32;  // ModelConfig::Validate has the exact limits
constexpr size_t kMaxEosIds = 64;

absl::Status Bad(const std::string& path, const std::string& message) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", message));
}

absl::Status ReadArchitecture(const json& root, const std::string& path, ModelConfig* config) {
  const json list = root.value("architectures", json());
  if (!list.is_array() || list.size() != 1 || !list[0].is_string()) {
    return Bad(path, "architectures is " + PrintableJson(list) + ", must be an array of one name");
  }
  config->architecture = list[0].get<std::string>();
  if (config->architecture != "Qwen2ForCausalLM" && config->architecture != "LlamaForCausalLM") {
    return Bad(path, "architecture \"" + Printable(config->architecture) +
                         "\" is not supported; these are: LlamaForCausalLM, Qwen2ForCausalLM");
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
  const auto rotary = JsonNumber(root, "partial_rotary_factor", 1, path);
  if (!rotary.ok()) return rotary.status();
  if (*rotary != 1) return Bad(path, absl::StrCat("partial_rotary_factor is ", *rotary, ", only 1 is supported"));
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

// rope_theta stands at the top (transformers 4) or in rope_parameters (transformers 5).
absl::Status ReadRope(const json& root, const std::string& path, ModelConfig* config) {
  auto theta = JsonNumber(root, "rope_theta", 10000, path);
  if (!theta.ok()) return theta.status();
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json rope = root.value(key, json());
    if (rope.is_null()) continue;
    if (!rope.is_object())
      return Bad(path, absl::StrCat(key, " is ", PrintableJson(rope), ", must be an object or null"));
    const auto old_name = JsonString(rope, "type", "default", path);
    const auto type = JsonString(rope, "rope_type", old_name.ok() ? *old_name : "default", path);
    if (!type.ok()) return type.status();
    if (*type != "default") {
      return Bad(path, absl::StrCat(key, " of type \"", Printable(*type),
                                    "\" is not supported; only models with plain RoPE (null or default) are"));
    }
    theta = JsonNumber(rope, "rope_theta", *theta, path);
    if (!theta.ok()) return theta.status();
  }
  config->rope_theta = static_cast<float>(*theta);
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
  const bool qwen2 = config.architecture == "Qwen2ForCausalLM";
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
                          {"max_position_embeddings", &config.max_position_embeddings, qwen2 ? 32768 : 2048}};
  for (const Field& field : fields) {
    const auto value = JsonInt(*root, field.key, field.fallback, 1, kMaxExtent, path);
    if (!value.ok()) return value.status();
    if (*value == 0) return Bad(path, absl::StrCat(field.key, " is missing"));
    *field.value = *value;
  }
  const auto kv_heads = JsonInt(*root, "num_key_value_heads", config.num_heads, 1, kMaxExtent, path);
  const auto head_dim = JsonInt(*root, "head_dim", 0, 1, kMaxExtent, path);
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
  config.qkv_bias = qwen2;
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
  const bool qwen2 = config.architecture == "Qwen2ForCausalLM";
  nlohmann::ordered_json root;
  root["architectures"] = {config.architecture};
  root["model_type"] = qwen2 ? "qwen2" : "llama";
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
  root["rope_theta"] = Shortest(config.rope_theta);
  root["tie_word_embeddings"] = config.tie_word_embeddings;
  root["torch_dtype"] = dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
  root["use_cache"] = true;
  root["vocab_size"] = config.vocab_size;
  if (qwen2) {
    root["use_sliding_window"] = false;
    root["sliding_window"] = nullptr;
    root["max_window_layers"] = config.num_layers;
  } else {
    root["attention_bias"] = false;
    root["mlp_bias"] = false;
  }
  return root.dump(2) + "\n";
}

}  // namespace lockstep
