// Philox4x32-10 (Salmon et al., SC 2011): a counter-based generator. A draw is a pure function of its key and counter,
// so it does not depend on batch, order, server or retry. constexpr, so that device code takes the same functions.
#ifndef LOCKSTEP_ENGINE_BASE_PHILOX_H_
#define LOCKSTEP_ENGINE_BASE_PHILOX_H_

#include <array>
#include <cstdint>

namespace lockstep {

constexpr std::array<uint32_t, 4> Philox4x32(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// Uniform in (0, 1): 24 bits, never 0 or 1.
constexpr float UniformOpen(uint32_t bits) { return (static_cast<float>(bits >> 8) + 0.5f) * (1.0f / 16777216.0f); }

// Uniform in (0, 1): the upper 52 bits of high:low, so that + 0.5 is exact; never 0 or 1.
constexpr double UniformOpen52(uint32_t high, uint32_t low) {
  const uint64_t bits = ((uint64_t{high} << 32) | low) >> 12;
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_PHILOX_H_
