// What every backend shares of the contract (ops.h): the sizes that matched numerics fix, and how attention is
// described. Plain constants and values: device code takes this header.
#ifndef LOCKSTEP_ENGINE_KERNELS_CONTRACT_H_
#define LOCKSTEP_ENGINE_KERNELS_CONTRACT_H_

#include <cstdint>

namespace lockstep {

// Whether an operation keeps the matched contract (ops.h) or chooses its own orders.
enum class Numerics : uint8_t { kMatched = 0, kNative = 1 };

struct AttentionShape {
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // G, divides H
  int64_t head_dim = 0;      // E
  float scale = 0;           // usually 1/sqrt(E)
};

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
