// Digests of weights where they lie. As in kernels.h: device memory, work on `stream`, nothing waits or allocates.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_DIGEST_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_DIGEST_H_

#include <cuda_runtime.h>

#include <cstdint>

namespace lockstep::cuda {

// digests [DigestBlocks(bytes)]: Digest (engine/base/digest.h) of every block of kDigestBlockBytes, the last one
// shorter. BlockDigest is Digest over them: the host's part, 8 bytes of 4,096. `data` may begin anywhere; where it is
// aligned to 8 bytes it is read as words.
[[nodiscard]] cudaError_t DigestsOfBlocks(const void* data, int64_t bytes, uint64_t* digests, cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_DIGEST_H_
