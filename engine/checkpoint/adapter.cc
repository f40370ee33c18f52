#include "engine/checkpoint/adapter.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/json.h"
#include "engine/base/process.h"
#include "engine/checkpoint/safetensors.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxConfigBytes = 1 << 20;
// Features of PEFT that make another product of the same tensors, or need more than them.
constexpr const char* kUnsupported[] = {"use_dora",
                                        "use_rslora",
                                        "use_qalora",
                                        "fan_in_fan_out",
                                        "lora_bias",
                                        "rank_pattern",
                                        "alpha_pattern",
                                        "modules_to_save",
                                        "layers_to_transform",
                                        "layer_replication",
                                        "exclude_modules",
                                        "trainable_token_indices",
                                        "target_parameters",
                                        "alora_invocation_tokens",
                                        "arrow_config",
                                        "use_bdlora",
                                        "kasa_config",
                                        "monteclora_config",
                                        "velora_config",
                                        "loftq_config"};

absl::Status Bad(const std::string& path, const std::string& message) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", message));
}

std::string TensorName(const LowRankAdapter& adapter, const char* matrix) {
  return absl::StrCat("base_model.model.", adapter.module, ".lora_", matrix, ".weight");
}

// A name and where its values lie in the arena.
struct AdapterTensor {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset = 0;
};

std::vector<AdapterTensor> Tensors(const LowRankLayout& layout) {
  std::vector<AdapterTensor> tensors;
  for (const LowRankAdapter& adapter : layout.adapters) {
    tensors.push_back({TensorName(adapter, "A"), {layout.rank, adapter.cols}, adapter.a_offset});
    tensors.push_back({TensorName(adapter, "B"), {adapter.rows, layout.rank}, adapter.b_offset});
  }
  return tensors;
}

float Alpha(const LowRankLayout& layout) { return layout.scale * static_cast<float>(layout.rank); }

// Absent, null, false, 0, "", [] and {}: a feature that is off.
bool Off(const json& value) {
  if (value.is_null()) return true;
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_string()) return value.get<std::string>().empty();
  return value.empty();
}

absl::Status CheckTargets(const json& root, const LowRankLayout& layout, const std::string& path) {
  const json targets = root.value("target_modules", json());
  if (!targets.is_array()) {
    return Bad(path, absl::StrCat("target_modules is ", PrintableJson(targets), ", must be a list of module names"));
  }
  std::set<std::string> theirs;
  for (const json& target : targets) {
    if (!target.is_string()) return Bad(path, absl::StrCat("target_modules has ", PrintableJson(target)));
    theirs.insert(target.get<std::string>());
  }
  const std::set<std::string> ours(layout.target_modules.begin(), layout.target_modules.end());
  if (theirs == ours) return absl::OkStatus();
  return Bad(path, absl::StrCat("target_modules are ", Printable(absl::StrJoin(theirs, ", ")),
                                ", lora.target_modules are ", absl::StrJoin(ours, ", "), "; set them to the same"));
}

}  // namespace

absl::Status CheckAdapterConfig(std::string_view text, const LowRankLayout& layout, const std::string& path) {
  const auto root = ParseJson(text, path);
  if (!root.ok()) return root.status();
  if (!root->is_object()) return Bad(path, "must be a JSON object");
  const auto type = JsonString(*root, "peft_type", "", path);
  if (!type.ok()) return type.status();
  if (*type != "LORA") return Bad(path, absl::StrCat("peft_type is '", Printable(*type), "'; LORA works"));
  const auto bias = JsonString(*root, "bias", "none", path);
  if (!bias.ok()) return bias.status();
  if (*bias != "none") return Bad(path, absl::StrCat("bias is '", Printable(*bias), "'; none works"));
  for (const char* key : kUnsupported) {
    if (const auto it = root->find(key); it != root->end() && !Off(*it)) {
      return Bad(path, absl::StrCat(key, " is ", PrintableJson(*it), ", which is not supported; it must be off"));
    }
  }
  // PiSSA, OLoRA and the like begin with another base than the one in the model's folder.
  const json init = root->value("init_lora_weights", json());
  if (init.is_string() && init != "gaussian") {
    return Bad(path,
               absl::StrCat("init_lora_weights is ", PrintableJson(init), ", which changes the base; not supported"));
  }
  const auto rank = JsonInt(*root, "r", 0, 1, kMaxLowRank, path);
  if (!rank.ok()) return rank.status();
  if (*rank != layout.rank) {
    return Bad(path, absl::StrCat("r is ", *rank, ", lora.rank is ", layout.rank, "; set them to the same"));
  }
  const auto alpha = JsonNumber(*root, "lora_alpha", 0, path);
  if (!alpha.ok()) return alpha.status();
  if (static_cast<float>(*alpha) / static_cast<float>(layout.rank) != layout.scale) {
    return Bad(path,
               absl::StrCat("lora_alpha is ", *alpha, ", lora.alpha is ", Alpha(layout), "; set them to the same"));
  }
  return CheckTargets(*root, layout, path);
}

absl::Status WriteAdapterFiles(const std::string& dir, const std::string& base_model, const LowRankLayout& layout,
                               const float* arena) {
  std::vector<SafetensorsSource> sources;
  for (AdapterTensor& tensor : Tensors(layout)) {
    sources.push_back({std::move(tensor.name), DType::kF32, std::move(tensor.shape), arena + tensor.offset});
  }
  absl::Status status = WriteSafetensors(dir + "/adapter_model.safetensors", sources, {{"format", "pt"}});
  if (!status.ok()) return status;
  nlohmann::ordered_json config;
  config["peft_type"] = "LORA";
  config["task_type"] = "CAUSAL_LM";
  config["base_model_name_or_path"] = base_model;
  config["r"] = layout.rank;
  config["lora_alpha"] = Alpha(layout);
  config["lora_dropout"] = 0.0;
  config["target_modules"] = layout.target_modules;
  config["bias"] = "none";
  config["fan_in_fan_out"] = false;
  config["inference_mode"] = true;
  config["init_lora_weights"] = true;
  return WriteFileAtomically(dir + "/adapter_config.json",
                             config.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

absl::Status LoadAdapter(const std::string& dir, const LowRankLayout& layout, float* arena) {
  const std::string config_path = dir + "/adapter_config.json";
  const auto text = ReadFile(config_path, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  if (absl::Status status = CheckAdapterConfig(*text, layout, config_path); !status.ok()) return status;
  const auto file = SafetensorsFile::Open(dir + "/adapter_model.safetensors");
  if (!file.ok()) return file.status();
  const std::vector<AdapterTensor> tensors = Tensors(layout);
  std::set<std::string> expected;
  for (const AdapterTensor& tensor : tensors) {
    expected.insert(tensor.name);
    const SafetensorsEntry* entry = (*file)->Find(tensor.name);
    if (entry == nullptr) return Bad((*file)->path(), absl::StrCat("tensor \"", tensor.name, "\" is missing"));
    if (entry->shape != tensor.shape) {
      return Bad((*file)->path(),
                 absl::StrCat("tensor \"", tensor.name, "\" has shape [", absl::StrJoin(entry->shape, ", "),
                              "], must have [", absl::StrJoin(tensor.shape, ", "), "] in this model"));
    }
    float* const values = arena + tensor.offset;
    if (absl::Status status = (*file)->ReadFloats(*entry, 0, entry->num_elements, values); !status.ok()) return status;
    if (!std::all_of(values, values + entry->num_elements, [](float value) { return std::isfinite(value); })) {
      return Bad((*file)->path(), absl::StrCat("tensor \"", tensor.name, "\" has values that are NaN or infinite"));
    }
  }
  for (const auto& [name, entry] : (*file)->tensors()) {
    if (expected.count(name) == 0) {
      return Bad((*file)->path(),
                 absl::StrCat("tensor \"", Printable(name), "\" is not one of the adapter's modules in this model"));
    }
  }
  return absl::OkStatus();
}

}  // namespace lockstep
