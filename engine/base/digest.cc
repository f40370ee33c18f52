#include "engine/base/digest.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/digest_steps.h"

namespace lockstep {
uint64_t Digest(const void* data, size_t bytes, uint64_t seed) {
  const char* p = static_cast<const char*>(data);
  // Independent chains hide the multiplier's latency.
  uint64_t lanes[digest::kLanes];
  for (int i = 0; i < digest::kLanes; ++i) lanes[i] = digest::LaneStart(i, seed);
  size_t left = bytes;
  for (; left >= digest::kStepBytes; left -= digest::kStepBytes, p += digest::kStepBytes) {
    uint64_t words[digest::kLanes];
    std::memcpy(words, p, sizeof(words));
    for (int i = 0; i < digest::kLanes; ++i) lanes[i] = digest::LaneStep(lanes[i], words[i]);
  }
  uint64_t tail[digest::kLanes] = {};
  if (left > 0) std::memcpy(tail, p, left);
  uint64_t state = digest::EndStart(seed, bytes);
  for (int i = 0; i < digest::kLanes; ++i) state = digest::EndStep(state, lanes[i], tail[i]);
  return digest::End(state);
}

void DigestsOfBlocks(const void* data, size_t bytes, uint64_t* digests) {
  const char* p = static_cast<const char*>(data);
  for (size_t i = 0; i < DigestBlocks(bytes); ++i) {
    const size_t begin = i * kDigestBlockBytes;
    digests[i] = Digest(p + begin, std::min(kDigestBlockBytes, bytes - begin));
  }
}

uint64_t BlockDigest(const void* data, size_t bytes) {
  std::vector<uint64_t> blocks(DigestBlocks(bytes));
  DigestsOfBlocks(data, bytes, blocks.data());
  return Digest(blocks.data(), blocks.size() * sizeof(uint64_t));
}

std::string DigestHex(uint64_t digest) { return absl::StrFormat("%016x", digest); }

}  // namespace lockstep
