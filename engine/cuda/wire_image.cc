#include "engine/cuda/wire_image.h"

#include <algorithm>

#include "engine/base/check.h"
#include "engine/kernels/cuda/rows.h"
#include "engine/tensor/dtype.h"

namespace lockstep::cuda {
namespace {

char* At(void* memory, int64_t element, DType dtype) {
  return static_cast<char*>(memory) + element * static_cast<int64_t>(DTypeSize(dtype));
}
const char* At(const void* memory, int64_t element, DType dtype) {
  return static_cast<const char*>(memory) + element * static_cast<int64_t>(DTypeSize(dtype));
}

}  // namespace

WireMap::WireMap(const ArenaLayout& layout) : elements_(layout.params.total_size) {
  for (size_t param = 0; param < layout.offsets.size(); ++param) {
    const ParamSpec& spec = layout.params.params[param];
    if (spec.size() == 0) continue;
    const int64_t image = spec.offset, arena = layout.offsets[param];
    if (!runs_.empty()) {
      WireRun& last = runs_.back();
      LOCKSTEP_CHECK(last.image + last.elements == image, "the image has no gaps");
      if (last.arena + last.elements == arena) {
        last.elements += spec.size();
        continue;
      }
    }
    runs_.push_back({image, arena, spec.size()});
  }
}

std::vector<WireRun> WireMap::Cut(int64_t begin, int64_t count) const {
  LOCKSTEP_CHECK(begin >= 0 && count >= 0 && begin + count <= elements_, "a cut is inside of the image");
  const int64_t end = begin + count;
  auto run = std::partition_point(runs_.begin(), runs_.end(),
                                  [begin](const WireRun& r) { return r.image + r.elements <= begin; });
  std::vector<WireRun> cut;
  for (; run != runs_.end() && run->image < end; ++run) {
    const int64_t from = std::max(run->image, begin), to = std::min(run->image + run->elements, end);
    cut.push_back({from - begin, run->arena + from - run->image, to - from});
  }
  return cut;
}

absl::Status WriteImage(std::span<const WireRun> runs, DType arena_dtype, const void* arena, DType image_dtype,
                        void* image, const Stream& stream) {
  for (const WireRun& run : runs) {
    const cudaError_t error = Convert(At(arena, run.arena, arena_dtype), arena_dtype, run.elements, image_dtype,
                                      At(image, run.image, image_dtype), stream.get());
    if (error != cudaSuccess) return CudaStatus(error, "rounding the weights for an update");
  }
  return absl::OkStatus();
}

absl::Status ImageToArena(std::span<const WireRun> runs, DType dtype, const void* image, void* arena,
                          const Stream& stream) {
  for (const WireRun& run : runs) {
    absl::Status status = stream.CopyOnDevice(At(arena, run.arena, dtype), At(image, run.image, dtype),
                                              static_cast<size_t>(run.elements) * DTypeSize(dtype));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ArenaToImage(std::span<const WireRun> runs, DType dtype, const void* arena, void* image,
                          const Stream& stream) {
  for (const WireRun& run : runs) {
    absl::Status status = stream.CopyOnDevice(At(image, run.image, dtype), At(arena, run.arena, dtype),
                                              static_cast<size_t>(run.elements) * DTypeSize(dtype));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace lockstep::cuda
