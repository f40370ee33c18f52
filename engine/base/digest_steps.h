// The arithmetic of Digest (digest.h), one source for the CPU and for kernels. Four lanes: word i of 8 bytes goes to
// lane i mod 4, as long as there are four of them; what is left over is the tail, filled up with zeros.
#ifndef LOCKSTEP_ENGINE_BASE_DIGEST_STEPS_H_
#define LOCKSTEP_ENGINE_BASE_DIGEST_STEPS_H_

#include <cstdint>

namespace lockstep::digest {

inline constexpr int kLanes = 4;
inline constexpr int kStepBytes = 8 * kLanes;
inline constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15ull;

constexpr uint64_t Mix(uint64_t state, uint64_t word) {
  const unsigned __int128 product = static_cast<unsigned __int128>(state ^ word) * kMultiplier;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// A lane before its first word, and behind each.
constexpr uint64_t LaneStart(int lane, uint64_t seed) {
  return seed ^ (lane == 0   ? 0x243F6A8885A308D3ull
                 : lane == 1 ? 0x13198A2E03707344ull
                 : lane == 2 ? 0xA4093822299F31D0ull
                             : 0x082EFA98EC4E6C89ull);
}
constexpr uint64_t LaneStep(uint64_t lane, uint64_t word) { return Mix(lane, word) + kMultiplier; }

// The end: from the start over the lanes in order, each with its word of the tail.
constexpr uint64_t EndStart(uint64_t seed, uint64_t bytes) { return Mix(seed, bytes); }
constexpr uint64_t EndStep(uint64_t state, uint64_t lane, uint64_t tail) {
  return Mix(Mix(state, lane) + 1, tail) + kMultiplier;
}
constexpr uint64_t End(uint64_t state) { return Mix(state, kMultiplier); }

}  // namespace lockstep::digest

#endif  // LOCKSTEP_ENGINE_BASE_DIGEST_STEPS_H_
