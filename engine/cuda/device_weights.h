// A model's weights on the device: one arena in the storage dtype, row-major, with the views that the decoder reads.
#ifndef LOCKSTEP_ENGINE_CUDA_DEVICE_WEIGHTS_H_
#define LOCKSTEP_ENGINE_CUDA_DEVICE_WEIGHTS_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/arena.h"
#include "engine/cuda/device.h"
#include "engine/model/model.h"

namespace lockstep::cuda {

// Views into an arena; null-data where the model has no such parameter. Shapes as in LayerWeights of
// engine/model/model.h.
struct DeviceLayerWeights {
  Tensor input_norm, post_norm;     // [1, D]
  Tensor qkv_bias, q_norm, k_norm;  // [1, (H + 2G) E], [1, E], [1, E]
  Tensor qkv, o;                    // [(H + 2G) E, D], [D, H E]
  Tensor gate_up, down;             // [2F, D], [D, F]; of a layer without experts
  Tensor router;                    // [N, D]; of a layer with experts, as what follows
  Tensor expert_gate_up;            // [N 2M, D]
  Tensor expert_down;               // [N D, M]
};

class DeviceWeights {
 public:
  // All zeros. Bytes of device memory: Bytes().
  static absl::StatusOr<DeviceWeights> Allocate(const ModelConfig& config, DType dtype, const Stream& stream);
  static size_t Bytes(const ModelConfig& config, DType dtype);

  // Rounds all parameters into the arena, from the host (LoadArena), or from a device arena of the same layout in FP32.
  absl::Status Load(const ParamSource& source, const Stream& stream, Staging& staging);
  absl::Status LoadFromMaster(const float* master, const Stream& stream);

  // Row-major [rows, cols] of one parameter: where a weight update writes.
  Tensor Of(int param) const { return layout_.View(param, arena_.data(), dtype_); }
  void* arena() const { return arena_.data(); }
  const ArenaLayout& layout() const { return layout_; }
  const ModelConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }

  const Tensor& embed() const { return embed_; }            // [V, D]
  const Tensor& output() const { return output_; }          // [V, D]; embed when tied
  const Tensor& final_norm() const { return final_norm_; }  // [1, D]
  const DeviceLayerWeights& layer(int64_t layer) const { return layers_[static_cast<size_t>(layer)]; }

  // Of what the arena holds; kept by whoever writes it.
  uint64_t version = 0;
  uint64_t epoch = 0;

 private:
  DeviceWeights() = default;
  ModelConfig config_;
  DType dtype_ = DType::kF16;
  ArenaLayout layout_;
  DeviceBuffer arena_;
  Tensor embed_, output_, final_norm_;
  std::vector<DeviceLayerWeights> layers_;
};

// Weights that are read, and a second set that the next ones are written to meanwhile. The one thread that runs the
// engine flips between two steps; graphs are captured for a set (DecodeStep).
class WeightSets {
 public:
  WeightSets(DeviceWeights first, DeviceWeights second) : sets_{std::move(first), std::move(second)} {}
  const DeviceWeights& current() const { return sets_[current_]; }
  // To be written. What still reads it was put on the stream before the last Flip.
  DeviceWeights& shadow() { return sets_[1 - current_]; }
  void Flip() { current_ = 1 - current_; }

 private:
  DeviceWeights sets_[2];
  int current_ = 0;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_DEVICE_WEIGHTS_H_
