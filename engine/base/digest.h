// The project's one checksum of bytes: 64-bit, non-cryptographic, for weights, buckets and files.
#ifndef LOCKSTEP_ENGINE_BASE_DIGEST_H_
#define LOCKSTEP_ENGINE_BASE_DIGEST_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace lockstep {

// Several GB/s. Digest(a) == Digest(b) for equal bytes, on any machine of the same byte order.
uint64_t Digest(const void* data, size_t bytes, uint64_t seed = 0);
// 16 hexadecimal digits.
std::string DigestHex(uint64_t digest);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_DIGEST_H_
