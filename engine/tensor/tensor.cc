#include "engine/tensor/tensor.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "engine/base/check.h"

namespace lockstep {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  const bool large = bytes >= 2 * kHugePageBytes;
  const size_t alignment = large ? kHugePageBytes : 64;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* pointer = std::aligned_alloc(alignment, rounded);
  LOCKSTEP_CHECK(pointer != nullptr, "out of memory: the memory plan must refuse before an allocation fails");
  if (large) madvise(pointer, rounded, MADV_HUGEPAGE);
  std::memset(pointer, 0, rounded);
  data_.reset(pointer);
}

void Buffer::Free::operator()(void* pointer) const { std::free(pointer); }

}  // namespace lockstep
