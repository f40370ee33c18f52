// Checkpoints of a run: CHECKPOINTS/step-N/ is a Hugging Face folder plus state/trainer.safetensors (FP32 arrays and
// text values for resume) plus manifest.json (name, size and digest of every file). Written in a temporary folder,
// proven by reading it back, renamed; then CHECKPOINTS/latest names it. Only folders with a valid manifest are trusted.
#ifndef LOCKSTEP_ENGINE_CHECKPOINT_STATE_H_
#define LOCKSTEP_ENGINE_CHECKPOINT_STATE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "engine/tensor/dtype.h"

namespace lockstep {

// An FP32 array of the trainer, in the caller's memory: "master", "adam_m", "adam_v".
struct StateArray {
  std::string name;
  float* data = nullptr;
  int64_t size = 0;
};

// Scalars as text: "step", "epoch", "loss_scale", "data_cursor", ...
using StateValues = std::map<std::string, std::string>;

struct CheckpointContents {
  const ModelConfig* config = nullptr;
  ParamSource arena;          // FP32 master weights in ParamLayout order, or weights
  DType dtype = DType::kF16;  // of model.safetensors
  std::string tokenizer_dir;  // "" for none
  StateValues values;
  std::vector<StateArray> arrays;
  // Writes more files into the folder before its manifest is made; null: none.
  std::function<absl::Status(const std::string& dir)> write_more = nullptr;
  uint64_t more_bytes = 0;  // about as many as it writes
};

// Writes CHECKPOINTS/step-N and returns its path. An existing step-N is replaced only once the new one is proven. On
// any error (RESOURCE_EXHAUSTED: disk full) what was there before is intact and the temporary folder is gone. Then
// deletes the oldest so that `keep` older ones remain beside the new (keep < 0: deletes none).
absl::StatusOr<std::string> WriteCheckpoint(const std::string& checkpoints_dir, int64_t step,
                                            const CheckpointContents& contents, int keep);

// Re-reads every file of the manifest: sizes and digests. DATA_LOSS names the file that differs.
absl::Status VerifyCheckpoint(const std::string& dir);

// The newest checkpoint that verifies: the one `latest` names if it does, else by descending step. NOT_FOUND if none;
// folders that do not verify are logged and passed over.
absl::StatusOr<std::string> LatestCheckpoint(const std::string& checkpoints_dir);

// Fills the arrays (names and sizes must be exactly those of the file) and returns the values.
absl::StatusOr<StateValues> LoadCheckpointState(const std::string& dir, const std::vector<StateArray>& arrays);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_CHECKPOINT_STATE_H_
