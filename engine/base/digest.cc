#include "engine/base/digest.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_format.h"

namespace lockstep {
namespace {

constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15ull;

uint64_t Mix(uint64_t state, uint64_t word) {
  const unsigned __int128 product = static_cast<unsigned __int128>(state ^ word) * kMultiplier;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

uint64_t Digest(const void* data, size_t bytes, uint64_t seed) {
  const char* p = static_cast<const char*>(data);
  // Four independent chains hide the multiplier's latency.
  uint64_t lanes[4] = {seed ^ 0x243F6A8885A308D3ull, seed ^ 0x13198A2E03707344ull, seed ^ 0xA4093822299F31D0ull,
                       seed ^ 0x082EFA98EC4E6C89ull};
  size_t left = bytes;
  for (; left >= 32; left -= 32, p += 32) {
    uint64_t words[4];
    std::memcpy(words, p, 32);
    for (int i = 0; i < 4; ++i) lanes[i] = Mix(lanes[i], words[i]) + kMultiplier;
  }
  uint64_t tail[4] = {0, 0, 0, 0};
  if (left > 0) std::memcpy(tail, p, left);
  uint64_t state = Mix(seed, bytes);
  for (int i = 0; i < 4; ++i) state = Mix(Mix(state, lanes[i]) + 1, tail[i]) + kMultiplier;
  return Mix(state, kMultiplier);
}

uint64_t BlockDigest(const void* data, size_t bytes) {
  const char* p = static_cast<const char*>(data);
  std::vector<uint64_t> blocks(DigestBlocks(bytes));
  for (size_t i = 0; i < blocks.size(); ++i) {
    const size_t begin = i * kDigestBlockBytes;
    blocks[i] = Digest(p + begin, std::min(kDigestBlockBytes, bytes - begin));
  }
  return Digest(blocks.data(), blocks.size() * sizeof(uint64_t));
}

std::string DigestHex(uint64_t digest) { return absl::StrFormat("%016x", digest); }

}  // namespace lockstep
