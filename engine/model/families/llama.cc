// Llama 2, 3.x (rope_type llama3 included), and models of its shape: TinyLlama, SmolLM, DeepSeek-R1-Distill-Llama.
#include "engine/model/families/families.h"

namespace lockstep {

extern const ModelFamily kLlamaFamily;
const ModelFamily kLlamaFamily = {
    .architecture = "LlamaForCausalLM",
    .model_type = "llama",
    .default_max_positions = 2048,
};

}  // namespace lockstep
