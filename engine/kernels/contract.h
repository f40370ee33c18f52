// The sizes that the matched contract (ops.h) fixes, for every backend. Plain constants: device code takes this header.
#ifndef LOCKSTEP_ENGINE_KERNELS_CONTRACT_H_
#define LOCKSTEP_ENGINE_KERNELS_CONTRACT_H_

#include <cstdint>

namespace lockstep {

// Virtual lanes of a row's reduction: element i is summed in lane i mod 8, ascending; then ((0+4)+(2+6)) +
// ((1+5)+(3+7)).
inline constexpr int64_t kVirtualLanes = 8;
// Tokens a KV-cache page (block) holds.
inline constexpr int64_t kPageTokens = 16;
// Keys of one online-softmax step.
inline constexpr int64_t kAttentionBlock = 128;
// Logits of one step of the online log-sum-exp of a row.
inline constexpr int64_t kVocabularyChunk = 4096;
// The rows of an RMSNorm's backward are cut into at most so many slices; d_weight is summed in a slice, then over them.
inline constexpr int64_t kNormSlices = 64;
// Gradients of one partial sum of the global norm, in 4 lanes of FP64.
inline constexpr int64_t kGradNormChunk = 65536;
// Tokens whose mass is one term of the sampler's cumulated mass.
inline constexpr int64_t kSamplerBlock = 256;

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_KERNELS_CONTRACT_H_
