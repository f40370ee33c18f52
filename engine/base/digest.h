// The project's one checksum of bytes: 64-bit, non-cryptographic, for weights, buckets and files.
#ifndef LOCKSTEP_ENGINE_BASE_DIGEST_H_
#define LOCKSTEP_ENGINE_BASE_DIGEST_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace lockstep {

// Several GB/s. Digest(a) == Digest(b) for equal bytes, on any machine of the same byte order.
uint64_t Digest(const void* data, size_t bytes, uint64_t seed = 0);
// Of the buckets of a weight update, a form that a device computes as well (engine/kernels/cuda/digest.h): the bytes
// are cut into blocks of kDigestBlockBytes, the last one shorter, and it is Digest over the list of the blocks'
// Digests. The two differ for the same bytes; files keep Digest.
inline constexpr size_t kDigestBlockBytes = 4096;
constexpr size_t DigestBlocks(size_t bytes) { return (bytes + kDigestBlockBytes - 1) / kDigestBlockBytes; }
uint64_t BlockDigest(const void* data, size_t bytes);
// The list: digests [DigestBlocks(bytes)].
void DigestsOfBlocks(const void* data, size_t bytes, uint64_t* digests);
// 16 hexadecimal digits.
std::string DigestHex(uint64_t digest);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_BASE_DIGEST_H_
