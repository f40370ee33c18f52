// Qwen3, dense.
#include "engine/model/families/families.h"

namespace lockstep {

extern const ModelFamily kQwen3Family;
const ModelFamily kQwen3Family = {
    .architecture = "Qwen3ForCausalLM",
    .model_type = "qwen3",
    .qk_norm = true,
    .default_head_dim = 128,
    .default_max_positions = 32768,
};

}  // namespace lockstep
