// Hugging Face model folders: config.json, model.safetensors (or shards with model.safetensors.index.json),
// generation_config.json and the tokenizer's files. transformers and vLLM load what WriteHfFolder writes.
#ifndef LOCKSTEP_ENGINE_CHECKPOINT_HF_FOLDER_H_
#define LOCKSTEP_ENGINE_CHECKPOINT_HF_FOLDER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

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

struct LoadOptions {
  // The type that the values must fit in. (LoadHfWeights takes its own dtype; a learner that trains in fp16 keeps FP32
  // master weights, whose fp16 copy must be finite.)
  DType dtype = DType::kF32;
  // Values beyond the type's largest become the largest, with a warning by tensor name and count. Otherwise they are
  // refused, by the same name and count. NaN and infinity are refused always.
  bool clamp = false;
  int threads = 0;  // 0: as many as the machine has
  // Parameters loaded so far and in all; called after each block, by one thread at a time.
  std::function<void(int64_t done, int64_t total)> progress;
};

// For LoadOptions::progress: a log line every five seconds.
std::function<void(int64_t, int64_t)> LogLoadProgress(const std::string& dir);

// Fills the FP32 arena (layout of ParamLayout(config)) from fp16, bf16 or fp32 tensors, by memory map and over threads.
// Every expected tensor must be there with its shape, and no other (except a lm_head.weight beside tied embeddings, and
// rotary inv_freq buffers). Experts may lie one by one or stacked, [N, 2M, D] and [N, D, M].
absl::Status LoadHfArena(const std::string& dir, const ModelConfig& config, float* arena,
                         const LoadOptions& options = {});
// The weights rounded to `dtype`, version 0, epoch 0. Never holds more than the weights and a block of rows a thread.
absl::StatusOr<std::shared_ptr<Weights>> LoadHfWeights(const std::string& dir, DType dtype,
                                                       const LoadOptions& options = {});

// Takes FP32 rows [row, row + rows) of a parameter (of a vector: elements).
using TakeRows = std::function<void(int param, int64_t row, int64_t rows, const float* values)>;

// A model folder that is held open, to be read again and again: the files' bytes are the page cache's, not ours. Nobody
// may write into the files meanwhile (replacing them is harmless).
class HfFolderReader {
 public:
  static absl::StatusOr<std::unique_ptr<HfFolderReader>> Open(const std::string& dir, const ModelConfig& config);
  ~HfFolderReader();
  // Every row of the parameters with wanted[param] (empty: of all), in blocks of whole panels of 16 rows; `take` is
  // called from several threads at once. The checks of LoadHfArena.
  absl::Status Read(const std::vector<bool>& wanted, const LoadOptions& options, const TakeRows& take) const;

 private:
  struct Impl;
  explicit HfFolderReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Hugging Face's own limit.
inline constexpr uint64_t kMaxShardBytes = 5'000'000'000;

// Writes a whole folder: temporary folder beside it, fsync of each file, rename. `dir` must not exist. The tokenizer's
// files are copied from tokenizer_dir ("" for none). Tensors of more than max_shard_bytes together go into shards
// model-00001-of-0000N.safetensors with model.safetensors.index.json; experts always have their own names.
absl::Status WriteHfFolder(const std::string& dir, const ModelConfig& config, ParamSource params, DType dtype,
                           const std::string& tokenizer_dir, uint64_t max_shard_bytes = kMaxShardBytes);
// A folder of random weights (InitializeArena's values for this seed), tensor by tensor: never holds more than a block.
absl::Status WriteRandomHfFolder(const std::string& dir, const ModelConfig& config, uint64_t seed, float std,
                                 DType dtype, const std::string& tokenizer_dir);
// The same files into a folder that exists, without the rename: for a checkpoint that adds its own files first.
absl::Status WriteHfFiles(const std::string& dir, const ModelConfig& config, ParamSource params, DType dtype,
                          const std::string& tokenizer_dir, uint64_t max_shard_bytes = kMaxShardBytes);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_CHECKPOINT_HF_FOLDER_H_
