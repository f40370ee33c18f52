// Attention forward for 16-bit dtypes, what its kernels share: a tile's rows on their way over their keys. A row's bits
// come from Scores, Weigh and AddValues, block by block; kernels differ in where keys lie, which rows a tile has, how
// the warps share the work, and whether a block of threads takes all states of its rows or one.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_FORWARD_CUH_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_FORWARD_CUH_

#include <limits>

#include "engine/kernels/cuda/attention.h"
#include "engine/kernels/cuda/attention_launch.h"
#include "engine/kernels/cuda/attention_tile.cuh"

namespace lockstep::cuda {

inline constexpr int kTileWarps = 4;  // of a block with a tile of rows
inline constexpr int kTileThreads = kTileWarps * kWarp;
inline constexpr int kTileSize = kTileWarps * kWarpRows;
static_assert(kTileSize >= kAttentionGroupMax);
inline constexpr int kAllBlocks = std::numeric_limits<int>::max();

struct alignas(16) Quad {
  float at[4];
};

// A thread's share of its warp's 16 rows: kBlocks times 8 columns of o.
template <int E, int kBlocks = E / 8>
struct WarpTile {
  uint32_t q[E / 16][4];
  float o[kBlocks][4];
  SoftmaxState state[2];
  int position[2];  // the last key that a row sees; -1: no row
};

template <int E>
constexpr int64_t ForwardSharedBytes(int threads) {
  return 2 * int64_t{2 * kBlockKeys * kSharedRow<E>} + int64_t{E / 8} * threads * static_cast<int64_t>(sizeof(Quad));
}

template <int E, int kBlocks>
__device__ void Clear(WarpTile<E, kBlocks>& tile) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) tile.o[n][c] = 0;
  }
  tile.state[0] = tile.state[1] = SoftmaxState{};
}

// s = q k of a block: keys 8 n + 2 t, + 1.
template <typename T, int E, typename Keys>
__device__ void Scores(const WarpTile<E>& tile, const T* keys, float (&s)[kBlockKeys / 8][4]) {
#pragma unroll
  for (int n = 0; n < kBlockKeys / 16; ++n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) s[2 * n][c] = s[2 * n + 1][c] = 0;
#pragma unroll
    for (int k = 0; k < E / 16; ++k) {
      uint32_t b[4];
      Keys::LoadKeys(b, keys, n, k);
      MmaPair<T>(s[2 * n], s[2 * n + 1], tile.q[k], b);
    }
  }
}

// s -> exp(s scale - m) for the block at position `begin`, 0 for keys beyond a row's own; takes the block into the
// states and scales o for what is added next.
template <typename Exponential, int E>
__device__ void Weigh(WarpTile<E>& tile, int begin, float scale, float (&s)[kBlockKeys / 8][4]) {
  const int first_key = begin + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float max = kNoScore;
#pragma unroll
    for (int n = 0; n < kBlockKeys / 8; ++n) {
#pragma unroll
      for (int c = 2 * i; c < 2 * i + 2; ++c) {
        s[n][c] = first_key + n * 8 + c % 2 <= tile.position[i] ? s[n][c] * scale : kNoScore;
        max = ScalarLane::Max(s[n][c], max);
      }
    }
    const float factor = Extend<Exponential>(tile.state[i], QuadMax(max));
    const float center = Center(tile.state[i].max);
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kBlockKeys / 8; ++n) {
#pragma unroll
      for (int c = 2 * i; c < 2 * i + 2; ++c) {
        s[n][c] = Exponential::Of(s[n][c] - center);
        sum += s[n][c];
      }
    }
    tile.state[i].sum += QuadSum(sum);
#pragma unroll
    for (int n = 0; n < E / 8; ++n) {
      tile.o[n][2 * i] *= factor;
      tile.o[n][2 * i + 1] *= factor;
    }
  }
}

template <typename T, int E>
__device__ void AddValues(WarpTile<E>& tile, const float (&weights)[kBlockKeys / 8][4], const T* values) {
#pragma unroll
  for (int k = 0; k < kBlockKeys / 16; ++k) {
    uint32_t p[4];
    PackOperand<T>(p, weights[2 * k], weights[2 * k + 1]);
#pragma unroll
    for (int n = 0; n < E / 16; ++n) {
      uint32_t b[4];
      LoadDepthRows<E>(b, values, k, n);
      MmaPair<T>(tile.o[2 * n], tile.o[2 * n + 1], p, b);
    }
  }
}

// Puts the split that `tile` has ended behind those before it, whose values wait in shared memory: each thread reads
// what it wrote. The merged values are in tile.o afterwards.
template <typename Exponential, int E, int kBlocks>
__device__ void MergeSplit(WarpTile<E, kBlocks>& tile, SoftmaxState (&total)[2], Quad* values) {
  const MergeFactors factors[2] = {Merge<Exponential>(total[0], tile.state[0]),
                                   Merge<Exponential>(total[1], tile.state[1])};
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
    const Quad earlier = values[n * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)];
#pragma unroll
    for (int c = 0; c < 4; ++c) tile.o[n][c] = MergeValues(earlier.at[c], tile.o[n][c], factors[c / 2]);
  }
}

template <int E, int kBlocks>
__device__ void KeepSplit(const WarpTile<E, kBlocks>& tile, Quad* values) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
    values[n * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)] = {tile.o[n][0], tile.o[n][1],
                                                                                tile.o[n][2], tile.o[n][3]};
  }
}

// Blocks of keys that a tile walks over, and after how many, counted from position 0, a new state begins.
struct BlockRange {
  int first, end;
  int state_blocks;
};

// Behind a block: puts a state that ends with it behind those before, and begins the next one. merged: whether there
// are any before.
template <typename Exponential, int E, int kBlocks>
__device__ void EndBlock(WarpTile<E, kBlocks>& tile, const BlockRange& range, int block, SoftmaxState (&total)[2],
                         bool& merged, Quad* values) {
  const bool last = block + 1 == range.end;
  if (!last && (block + 1) % range.state_blocks != 0) return;
  if (merged) {
    MergeSplit<Exponential>(tile, total, values);
  } else {
    total[0] = tile.state[0];
    total[1] = tile.state[1];
  }
  merged = true;
  if (last) return;
  KeepSplit(tile, values);
  Clear(tile);
}

// Takes the rows of `tile` (q and position are set) over `range`; keys from `end_position` on are not there. o and the
// states are the result. All threads of the block come; shared memory is free again afterwards.
template <typename Exponential, typename T, int E, typename Keys>
__device__ void AttendTile(WarpTile<E>& tile, const Keys& keys, const BlockRange& range, int end_position,
                           float scale) {
  T* const key_rows = reinterpret_cast<T*>(DynamicShared());
  T* const value_rows = key_rows + kBlockKeys * kSharedRow<E>;
  Quad* const values = reinterpret_cast<Quad*>(value_rows + kBlockKeys * kSharedRow<E>);
  SoftmaxState total[2] = {};
  bool merged = false;
  Clear(tile);
  keys.CopyKeys(key_rows, range.first * kBlockKeys, end_position);
  CpAsyncCommit();
  keys.CopyValues(value_rows, range.first * kBlockKeys, end_position);
  CpAsyncCommit();
  for (int block = range.first; block < range.end; ++block) {
    const bool last = block + 1 == range.end;
    const int next = (block + 1) * kBlockKeys;
    float s[kBlockKeys / 8][4];
    CpAsyncWait<1>();
    __syncthreads();
    Scores<T, E, Keys>(tile, key_rows, s);
    __syncthreads();
    if (!last) keys.CopyKeys(key_rows, next, end_position);
    CpAsyncCommit();
    Weigh<Exponential>(tile, block * kBlockKeys, scale, s);
    CpAsyncWait<1>();
    __syncthreads();
    AddValues<T>(tile, s, value_rows);
    __syncthreads();
    if (!last) keys.CopyValues(value_rows, next, end_position);
    CpAsyncCommit();
    EndBlock<Exponential>(tile, range, block, total, merged, values);
  }
  tile.state[0] = total[0];
  tile.state[1] = total[1];
}

template <typename T>
struct ForwardArgs {
  Rows<const T> q;
  Rows<T> out;
  float scale;
  int group;         // H / G
  int kv_heads;      // G
  int state_blocks;  // blocks of keys of one state
};

template <typename T>
ForwardArgs<T> MakeForwardArgs(const AttentionShape& shape, const Tensor& q, const Tensor& out, int state_blocks) {
  return {RowsOf<const T>(q),
          RowsOf<T>(out),
          shape.scale,
          static_cast<int>(shape.num_heads / shape.num_kv_heads),
          static_cast<int>(shape.num_kv_heads),
          state_blocks};
}

// ---- paged

template <typename T>
struct PagedArgs {
  ForwardArgs<T> forward;
  const int32_t* block_table;
  int64_t table_stride;
  const int32_t* row_sequence;
  const int32_t* positions;
  const T* keys;
  const T* values;
  int first_row;  // rows [first_row, end_row) are this kernel's
  int end_row;
  int block_blocks;      // blocks of keys that a block of threads takes
  SoftmaxState* states;  // [row][head][split], and their values [..][E]: where there is more than one split
  float* state_values;
};

template <int E, typename T>
__device__ PagedKeys<T, E> KeysOf(const PagedArgs<T>& a, int sequence, int kv_head) {
  const int64_t head = int64_t{kv_head} * E * kPageTokens;
  return {a.block_table + sequence * a.table_stride, a.keys + head, a.values + head,
          int64_t{a.forward.kv_heads} * E * kPageTokens};
}

template <typename T>
PagedArgs<T> MakePagedArgs(const AttentionShape& shape, const Tensor& q, const PagedView& view, Numerics numerics,
                           const Tensor& out) {
  const int state_blocks = numerics == Numerics::kMatched ? static_cast<int>(kAttentionSplit / kBlockKeys) : kAllBlocks;
  return {MakeForwardArgs<T>(shape, q, out, state_blocks),
          view.block_table,
          view.table_stride,
          view.row_sequence,
          view.positions,
          static_cast<const T*>(view.key_pages),
          static_cast<const T*>(view.value_pages),
          static_cast<int>(view.decode_rows),
          static_cast<int>(q.rows),
          kAllBlocks,
          nullptr,
          nullptr};
}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_FORWARD_CUH_
