// Causal grouped-query attention: paged (decode, prefill) and packed (training), with its backward. Contracts and
// shapes: engine/kernels/ops.h.
//
// All H/G heads of a key/value head and a tile of tokens go over one pass of its keys and values. Per row and key block
// (kAttentionBlock positions counted from 0; native packed: kNativePackedBlock): scores are one fma chain over
// ascending e, times scale; online softmax (Milakov and Gimelshein 2018): m' = max(m, max s), l' = l exp(m - m') + sum
// exp(s - m') in 8 lanes and the lane tree; o' = o exp(m - m') continued by one fma chain over ascending keys. Masked
// keys have weight exactly 0 and their values are not multiplied in, so a row sees nothing of the tokens after it, not
// even what is not finite. Matched packed attention writes its keys and values into pages and runs the paged kernel,
// so the two have the same bits by construction. Native packed attention scales the query instead of the score and uses
// another block: as much of a difference as two attention libraries have.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_ATTENTION_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_ATTENTION_H_

#include <cstdint>
#include <span>

#include "engine/kernels/cpu/context.h"
#include "engine/kernels/ops.h"

namespace lockstep::cpu {

inline constexpr int64_t kNativePackedBlock = 64;

void WriteKv(CpuContext& context, const AttentionShape& shape, const Tensor& k, const Tensor& v,
             std::span<const PagedSequence> sequences, const KvPages& cache);
void AttentionPaged(CpuContext& context, const AttentionShape& shape, const Tensor& q,
                    std::span<const PagedSequence> sequences, const KvPages& cache, const Tensor& out);
void AttentionPacked(CpuContext& context, const AttentionShape& shape, const Tensor& q, const Tensor& k,
                     const Tensor& v, std::span<const int32_t> cu_seqlens, const Tensor& out, const Tensor& lse);

// FlashAttention-2's backward (Dao 2023) from lse and D = rowsum(dO * O). One work item is all of a sequence's rows for
// one key/value head, so every sum has one order whatever the threads: tiles of tokens ascending, keys ascending.
void AttentionPackedBackward(CpuContext& context, const AttentionShape& shape, const Tensor& d_out, const Tensor& q,
                             const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                             std::span<const int32_t> cu_seqlens, const Tensor& d_q, const Tensor& d_k,
                             const Tensor& d_v);

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_ATTENTION_H_
