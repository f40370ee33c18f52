// Private to the folder: its safetensors files as one set of tensors, checked against a layout.
#ifndef LOCKSTEP_ENGINE_CHECKPOINT_HF_TENSORS_H_
#define LOCKSTEP_ENGINE_CHECKPOINT_HF_TENSORS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/model/model.h"

namespace lockstep {

// Where a layout's tensor lies on disk.
struct TensorPlace {
  const SafetensorsFile* file = nullptr;
  const SafetensorsEntry* entry = nullptr;  // F32, F16 or BF16
  int64_t first = 0;                        // element of `entry` where the tensor begins: not 0 only in a stacked one
};

struct HfTensors {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  std::vector<TensorPlace> places;  // [layout.hf_tensors]
};

// Maps the folder's file or shards. Every tensor of the layout must be there (an expert's by its own name or in the
// stacked tensor of its layer) with its shape and a floating-point type, and no other, except a lm_head.weight beside
// tied embeddings and rotary inv_freq buffers.
absl::StatusOr<HfTensors> OpenHfTensors(const std::string& dir, const ModelConfig& config, const ParamLayout& layout);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_CHECKPOINT_HF_TENSORS_H_
