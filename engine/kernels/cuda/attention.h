// Causal grouped-query attention on the device: packed (training), its backward, and paged (prefill and decode).
// Legend, layouts of the pages and AttentionShape: engine/kernels/ops.h and contract.h; the rules of launchers:
// kernels.h. Nothing here reads the host: lengths, positions and page tables are device memory, and `max_length` and
// `max_position` are bounds that choose grids, so that a CUDA graph may replay a call with other lengths below them.
//
// 16-bit dtypes: tensor cores, no scores in memory. A row is one token and one query head. Its keys are taken in blocks
// of kDeviceAttentionBlock positions counted from 0: scores (products of 16 e, ascending, FP32) times scale; online
// softmax (attention_state.cuh); the block's weights exp(s - m) are rounded to the storage dtype and multiplied with
// the values by 16 keys, ascending, FP32. The sum of weights takes them before rounding: each of four threads 2 of
// every 8 keys, ascending, then a tree. Every kAttentionSplit positions a new state begins, and the states of a row are
// merged in ascending order. At the end: out = store(o / l), lse = m + log(l). Rounding the weights is the one rounding
// point that the CPU does not have: a tensor core takes no FP32. It costs half a step of the storage dtype relative to
// each weight.
//
// Matched numerics: a row's bits depend on its query, keys and values alone: packed, paged in tiles, paged row by row
// with the splits side by side, whatever the batch, the chunking of a prefill and the pages. exp is the shared
// polynomial. This rests on a tensor core's result for an element depending on that element's operands alone, and on
// products with weights of 0 changing no sum.
// Native numerics: NativeExponential for exp (attention_state.cuh), no splits in packed attention and in tiles, and
// between rows that go side by side as many splits as fill the device.
//
// A weight of 0 does not hide a value that is not finite: it may reach other rows of its own sequence that are in its
// tile, not only later ones as on the CPU; never another sequence. What a page holds beyond the positions that the call
// attends to is not read as a value.
//
// FP32: for tests and checks. FFMA, one block of threads a row, the bits of the CPU's matched operations forward and
// backward, both numerics, no splits.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/kernels/contract.h"
#include "engine/tensor/tensor_view.h"

namespace lockstep::cuda {

// Keys of one step, and of one state of matched numerics, with 16-bit dtypes.
inline constexpr int64_t kDeviceAttentionBlock = 64;
inline constexpr int64_t kAttentionSplit = 256;
static_assert(kAttentionSplit % kDeviceAttentionBlock == 0 && kDeviceAttentionBlock % kPageTokens == 0);
// Query heads of one key/value head, at most: they share a tile.
inline constexpr int64_t kAttentionGroupMax = 64;

// E is 16, 32, 64, 96 or 128; G divides H; H / G is at most kAttentionGroupMax. The launchers take nothing else:
// whoever loads a model asks first and says it in one line.
bool AttentionSupports(const AttentionShape& shape);

// The rows of a paged call. Row t is the token at positions[t] of the sequence whose pages are row row_sequence[t] of
// block_table: entry i is the page of positions [16 i, 16 i + 16), valid for all up to the position's. A row_sequence
// of -1 is a padded row: its output is zeros, and its position is not read.
struct PagedView {
  const int32_t* block_table = nullptr;   // [S, table_stride]
  int64_t table_stride = 0;               // entries
  const int32_t* row_sequence = nullptr;  // [T]
  const int32_t* positions = nullptr;     // [T], 0 .. max_position
  const void* key_pages = nullptr;        // [page][G][E][16], 16-byte aligned
  const void* value_pages = nullptr;      // [page][G][16][E], 16-byte aligned
  // Rows [0, decode_rows) go one by one, their keys split over the device; the others in tiles of consecutive rows,
  // where those of one sequence share a pass over its keys and those of different sequences wait for one another. So:
  // sequences with one row first, then the prefills. It chooses time, and under matched numerics no bit.
  int64_t decode_rows = 0;
};

// Bytes of scratch of a call with at most so many decode rows and positions; 16-byte aligned. 0 where none is needed
// (then it may be null).
int64_t AttentionPagedScratchBytes(const AttentionShape& shape, DType dtype, int64_t decode_rows, int64_t max_position,
                                   Numerics numerics);

// Causal attention of each row over positions 0 .. its own, from pages that hold its own key and value too. q, out
// [T, H E], rows at multiples of 16 bytes, out not q. max_position bounds all positions.
[[nodiscard]] cudaError_t AttentionPaged(const AttentionShape& shape, const Tensor& q, const PagedView& view,
                                         int64_t max_position, Numerics numerics, void* scratch, const Tensor& out,
                                         cudaStream_t stream);

// Causal attention within each packed sequence: rows [cu_seqlens[i], cu_seqlens[i + 1]), i < num_sequences, each at
// most max_length. q, out [T, H E]; k, v [T, G E]; one dtype, rows at multiples of 16 bytes; lse FP32 [T, H] (any
// stride) or null-data. cu_seqlens [num_sequences + 1].
[[nodiscard]] cudaError_t AttentionPacked(const AttentionShape& shape, const Tensor& q, const Tensor& k,
                                          const Tensor& v, const int32_t* cu_seqlens, int64_t num_sequences,
                                          int64_t max_length, Numerics numerics, const Tensor& out, const Tensor& lse,
                                          cudaStream_t stream);

// Gradients of it, from lse and D = rowsum(d_out * out) (Dao 2023): one pass for d_q, one for d_k and d_v, which
// multiplies the scores once more instead of using atomics, so that every sum has one order: d_q over ascending keys;
// d_k and d_v over ascending tokens, and for each the heads of the group. Stored once, rounded. 16-bit dtypes: p =
// exp(s scale - lse) and p (dP - D) are rounded to the storage dtype where they are multiplied, and scale is applied
// to the sums. d_q [T, H E], d_k, d_v [T, G E], none of them an input; rows at multiples of 16 bytes. scratch:
// AttentionBackwardScratch floats.
int64_t AttentionBackwardScratch(const AttentionShape& shape, int64_t rows);
[[nodiscard]] cudaError_t AttentionPackedBackward(const AttentionShape& shape, const Tensor& d_out, const Tensor& q,
                                                  const Tensor& k, const Tensor& v, const Tensor& out,
                                                  const Tensor& lse, const int32_t* cu_seqlens, int64_t num_sequences,
                                                  int64_t max_length, Numerics numerics, const Tensor& d_q,
                                                  const Tensor& d_k, const Tensor& d_v, float* scratch,
                                                  cudaStream_t stream);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_H_
