// Qwen3 mixtures of experts: Qwen3-30B-A3B, Qwen3-235B-A22B.
#include "engine/model/families/families.h"

namespace lockstep {

extern const ModelFamily kQwen3MoeFamily;
const ModelFamily kQwen3MoeFamily = {
    .architecture = "Qwen3MoeForCausalLM",
    .model_type = "qwen3_moe",
    .qk_norm = true,
    .experts = true,
    .default_max_positions = 32768,
};

}  // namespace lockstep
