// LoRA adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors, whose tensors are
// base_model.model.MODULE.lora_A.weight [r, k] and ...lora_B.weight [n, r].
#ifndef LOCKSTEP_ENGINE_CHECKPOINT_ADAPTER_H_
#define LOCKSTEP_ENGINE_CHECKPOINT_ADAPTER_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine/model/low_rank.h"

namespace lockstep {

// Writes both files into `dir`, which must exist; tensors in FP32. base_model: the path or name of the model that the
// adapter belongs to.
absl::Status WriteAdapterFiles(const std::string& dir, const std::string& base_model, const LowRankLayout& layout,
                               const float* arena);

// Fills the arena [layout.total_size] from a PEFT folder. INVALID_ARGUMENT, one line: not LoRA, a feature that changes
// the product (DoRA, rsLoRA, rank or alpha patterns, biases, fan_in_fan_out, saved modules, replicated layers), a rank,
// alpha or set of modules that is not the layout's, a tensor that is missing, too many, of a wrong shape or not finite.
absl::Status LoadAdapter(const std::string& dir, const LowRankLayout& layout, float* arena);

// The check of adapter_config.json alone; `path` is for messages.
absl::Status CheckAdapterConfig(std::string_view text, const LowRankLayout& layout, const std::string& path);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_CHECKPOINT_ADAPTER_H_
