// Hugging Face model folders: config.json, model.safetensors (or shards with model.safetensors.index.json),
// generation_config.json and the tokenizer's files. transformers and vLLM load what WriteHfFolder writes.
#ifndef LOCKSTEP_ENGINE_CHECKPOINT_HF_FOLDER_H_
#define LOCKSTEP_ENGINE_CHECKPOINT_HF_FOLDER_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "engine/tensor/dtype.h"

namespace lockstep {

// DIR/config.json. Refuses, in one line, an architecture or a feature that the decoder does not compute.
absl::StatusOr<ModelConfig> ReadHfConfig(const std::string& dir);
// The same from text; `path` is for messages.
absl::StatusOr<ModelConfig> ParseHfConfig(std::string_view text, const std::string& path);
// config.json's text for a model whose tensors are stored as `dtype`.
std::string HfConfigJson(const ModelConfig& config, DType dtype);

// Fills the FP32 arena (layout of ParamLayout(config)) from fp16, bf16 or fp32 tensors. Every expected tensor must be
// there with its shape, and no other (except a lm_head.weight beside tied embeddings, and rotary inv_freq buffers).
// NaN and infinity are refused by tensor name and count.
absl::Status LoadHfArena(const std::string& dir, const ModelConfig& config, float* arena);
// The weights rounded to `dtype`, version 0, epoch 0. For fp16, values beyond +-65504 are refused by tensor name and
// count. Never holds more than the weights and one block of rows.
absl::StatusOr<std::shared_ptr<Weights>> LoadHfWeights(const std::string& dir, DType dtype);

// Writes a whole folder: temporary folder beside it, fsync of each file, rename. `dir` must not exist. The tokenizer's
// files are copied from tokenizer_dir ("" for none).
absl::Status WriteHfFolder(const std::string& dir, const ModelConfig& config, const float* arena, DType dtype,
                           const std::string& tokenizer_dir);
// A folder of random weights (InitializeArena's values for this seed), tensor by tensor: never holds more than a block.
absl::Status WriteRandomHfFolder(const std::string& dir, const ModelConfig& config, uint64_t seed, float std,
                                 DType dtype, const std::string& tokenizer_dir);
// The same files into a folder that exists, without the rename: for a checkpoint that adds its own files first.
absl::Status WriteHfFiles(const std::string& dir, const ModelConfig& config, const float* arena, DType dtype,
                          const std::string& tokenizer_dir);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_CHECKPOINT_HF_FOLDER_H_
