// Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen.
#include "engine/model/families/families.h"

namespace lockstep {

extern const ModelFamily kQwen2Family;
const ModelFamily kQwen2Family = {
    .architecture = "Qwen2ForCausalLM",
    .model_type = "qwen2",
    .qkv_bias = true,
    .default_max_positions = 32768,
};

}  // namespace lockstep
