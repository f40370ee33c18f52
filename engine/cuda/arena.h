// Where the parameters lie in the device's flat arenas, and how they come there and back. All arenas of a model share
// one layout: the weights in the storage dtype, and in FP32 the gradient, the master copy and Adam's moments. So the
// optimizer's 16-bit copy goes straight into the weights, and a parameter is the same range in each of them.
#ifndef LOCKSTEP_ENGINE_CUDA_ARENA_H_
#define LOCKSTEP_ENGINE_CUDA_ARENA_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/cuda/device.h"
#include "engine/model/model.h"

namespace lockstep::cuda {

// The canonical order of ParamLayout, but a layer's experts are stacked: gate_up of all experts, then down of all. Each
// parameter, or stack, begins at a multiple of kArenaAlignment elements; what lies between is zero in every arena. A
// dense model whose sizes are such multiples has ParamLayout's own offsets.
inline constexpr int64_t kArenaAlignment = 64;

struct ArenaLayout {
  ParamLayout params;
  std::vector<int64_t> offsets;  // [params] elements
  int64_t size = 0;              // elements

  ArenaLayout() = default;
  explicit ArenaLayout(const ModelConfig& config);
  // [rows, cols] of one parameter; null-data for -1.
  Tensor View(int param, void* arena, DType dtype) const;
  // [N rows, cols]: gate_up (or down) of all experts of a layer.
  Tensor ViewExperts(int first_param, int64_t num_experts, void* arena, DType dtype) const;
};

// Two pinned blocks through which data of any size moves, so that the host fills one while the other is copied.
class Staging {
 public:
  static constexpr size_t kBlockBytes = size_t{8} << 20;
  static absl::StatusOr<Staging> Create(size_t block_bytes = kBlockBytes);

  // Asks `fill` for bytes [offset, offset + count) in ascending pieces, whole units of `unit` bytes, and copies them to
  // `device`. Does not wait for the last copies.
  using Fill = absl::FunctionRef<void(size_t offset, size_t count, void* host)>;
  absl::Status ToDevice(const Stream& stream, void* device, size_t bytes, size_t unit, Fill fill);
  // The way back; waits.
  using Take = absl::FunctionRef<void(size_t offset, size_t count, const void* host)>;
  absl::Status ToHost(const Stream& stream, const void* device, size_t bytes, size_t unit, Take take);

 private:
  struct Block {
    PinnedBuffer buffer;
    Event free;  // its last copy is done
  };
  Block blocks_[2];
  int next_ = 0;
};

// Fills a device arena of `dtype` from the values of all parameters, rounded.
absl::Status LoadArena(const ArenaLayout& layout, const ParamSource& source, DType dtype, void* arena,
                       const Stream& stream, Staging& staging);
// All parameters of a device arena into a flat FP32 arena in ParamLayout's order.
absl::Status StoreArena(const ArenaLayout& layout, DType dtype, const void* arena, float* values, const Stream& stream,
                        Staging& staging);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_ARENA_H_
