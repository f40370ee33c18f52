// The wire image of a model's weights, as updates carry them (weight_sync/bucket_plan.h): the parameters one after the
// other in ParamLayout's order, row-major, in one dtype, without gaps. An arena has the same elements at other offsets
// (ArenaLayout): experts are stacked there, and parameters aligned. Where a model has no experts and its sizes are
// multiples of kArenaAlignment, both are one run.
//
// Image and pieces of it are device memory; work is put on the stream and not waited for.
#ifndef LOCKSTEP_ENGINE_CUDA_WIRE_IMAGE_H_
#define LOCKSTEP_ENGINE_CUDA_WIRE_IMAGE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/cuda/arena.h"
#include "engine/cuda/device.h"

namespace lockstep::cuda {

// Elements that are neighbours in both; offsets in elements.
struct WireRun {
  int64_t image = 0;
  int64_t arena = 0;
  int64_t elements = 0;
};

class WireMap {
 public:
  explicit WireMap(const ArenaLayout& layout);
  // All of it, as few as there can be, ascending by `image`; together the whole image.
  std::span<const WireRun> runs() const { return runs_; }
  int64_t elements() const { return elements_; }
  // Elements [begin, begin + count) of the image: runs cut to them, their `image` counted from `begin`.
  std::vector<WireRun> Cut(int64_t begin, int64_t count) const;

 private:
  std::vector<WireRun> runs_;
  int64_t elements_ = 0;
};

// image[r] = store(load(arena[r])) for every run: the values that RoundBucket and LoadBucket of weight_sync give.
absl::Status WriteImage(std::span<const WireRun> runs, DType arena_dtype, const void* arena, DType image_dtype,
                        void* image, const Stream& stream);
// Copies between an arena and an image, or a piece of one, of the same dtype.
absl::Status ImageToArena(std::span<const WireRun> runs, DType dtype, const void* image, void* arena,
                          const Stream& stream);
absl::Status ArenaToImage(std::span<const WireRun> runs, DType dtype, const void* arena, void* image,
                          const Stream& stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_WIRE_IMAGE_H_
