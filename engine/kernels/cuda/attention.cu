// Attention forward for 16-bit dtypes. All three kernels walk a tile's rows over their keys by AttendTile: a row's bits
// come from there. They differ in where keys lie, which rows a tile has, and whether a block of threads takes all
// splits of its rows or one.
#include <algorithm>
#include <limits>

#include "engine/kernels/cuda/attention.h"
#include "engine/kernels/cuda/attention_launch.h"
#include "engine/kernels/cuda/attention_tile.cuh"

namespace lockstep::cuda {
namespace {

constexpr int kTileWarps = 4;
constexpr int kTileThreads = kTileWarps * kWarp;
constexpr int kTileSize = kTileWarps * kWarpRows;
static_assert(kTileSize >= kAttentionGroupMax);
constexpr int kAllBlocks = std::numeric_limits<int>::max();
// Warps that keep a device busy with copies on their way; with fewer rows than that, keys are split.
constexpr int64_t kBusyWarps = 512;

struct alignas(16) Quad {
  float at[4];
};

// A thread's share of its warp's 16 rows.
template <int E>
struct WarpTile {
  uint32_t q[E / 16][4];
  float o[E / 8][4];
  SoftmaxState state[2];
  int position[2];  // the last key that a row sees; -1: no row
};

template <int E>
constexpr int64_t ForwardSharedBytes(int threads) {
  return 2 * int64_t{2 * kBlockKeys * kSharedRow<E>} + int64_t{E / 8} * threads * static_cast<int64_t>(sizeof(Quad));
}

template <int E>
__device__ void Clear(WarpTile<E>& tile) {
#pragma unroll
  for (int n = 0; n < E / 8; ++n) {
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
template <typename Exponential, int E>
__device__ void MergeSplit(WarpTile<E>& tile, SoftmaxState (&total)[2], Quad* values) {
  const MergeFactors factors[2] = {Merge<Exponential>(total[0], tile.state[0]),
                                   Merge<Exponential>(total[1], tile.state[1])};
#pragma unroll
  for (int n = 0; n < E / 8; ++n) {
    const Quad earlier = values[n * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)];
#pragma unroll
    for (int c = 0; c < 4; ++c) tile.o[n][c] = MergeValues(earlier.at[c], tile.o[n][c], factors[c / 2]);
  }
}

template <int E>
__device__ void KeepSplit(const WarpTile<E>& tile, Quad* values) {
#pragma unroll
  for (int n = 0; n < E / 8; ++n) {
    values[n * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)] = {tile.o[n][0], tile.o[n][1],
                                                                                tile.o[n][2], tile.o[n][3]};
  }
}

// Blocks of keys that a tile walks over, and after how many, counted from position 0, a new state begins.
struct BlockRange {
  int first, end;
  int state_blocks;
};

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
    if (last || (block + 1) % range.state_blocks == 0) {
      if (merged) {
        MergeSplit<Exponential>(tile, total, values);
      } else {
        total[0] = tile.state[0];
        total[1] = tile.state[1];
      }
      merged = true;
      if (!last) {
        KeepSplit(tile, values);
        Clear(tile);
      }
    }
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

template <int E, typename T>
__device__ void StoreOutput(const WarpTile<E>& tile, T* const (&out)[2]) {
  const float factors[2] = {1.0f / tile.state[0].sum, 1.0f / tile.state[1].sum};
  StoreRows<E>(out, tile.o, factors);
}

// ---- packed

template <typename T>
struct PackedArgs {
  ForwardArgs<T> forward;
  Rows<const T> k, v;
  const int32_t* cu_seqlens;
  Rows<float> lse;  // data null: not wanted
};

// Block x: a tile of tokens, the last first, and a kv head; y: a sequence.
template <typename Exponential, typename T, int E>
__global__ void AttentionPackedKernel(PackedArgs<T> a) {
  const int group = a.forward.group, tile_tokens = kTileSize / group;
  const int tiles = static_cast<int>(gridDim.x) / a.forward.kv_heads;
  const int kv_head = static_cast<int>(blockIdx.x) % a.forward.kv_heads;
  const int token = (tiles - 1 - static_cast<int>(blockIdx.x) / a.forward.kv_heads) * tile_tokens;
  const int64_t begin = a.cu_seqlens[blockIdx.y];
  const int length = static_cast<int>(a.cu_seqlens[blockIdx.y + 1] - begin);
  if (token >= length) return;
  const int tokens = length - token < tile_tokens ? length - token : tile_tokens;
  const TileRows rows = {begin + token, 0, tokens * group, group};
  const int row[2] = {rows.Of(0), rows.Of(1)};
  const T* const q[2] = {rows.In(a.forward.q, row[0], kv_head, E), rows.In(a.forward.q, row[1], kv_head, E)};
  WarpTile<E> tile;
  LoadRowOperands<E>(tile.q, q);
  for (int i = 0; i < 2; ++i) tile.position[i] = row[i] < 0 ? -1 : token + row[i] / group;
  const PackedKeys<T, E> keys = {a.k.data + begin * a.k.stride + kv_head * E,
                                 a.v.data + begin * a.v.stride + kv_head * E, a.k.stride, a.v.stride};
  const int end = token + tokens;
  AttendTile<Exponential, T>(tile, keys, {0, (end + kBlockKeys - 1) / kBlockKeys, a.forward.state_blocks}, end,
                             a.forward.scale);
  T* const out[2] = {rows.In(a.forward.out, row[0], kv_head, E), rows.In(a.forward.out, row[1], kv_head, E)};
  StoreOutput<E>(tile, out);
  if (a.lse.data == nullptr || threadIdx.x % 4 != 0) return;
  for (int i = 0; i < 2; ++i) {
    if (row[i] < 0) continue;
    *rows.In(a.lse, row[i], kv_head, 1) = tile.state[i].max + Log(tile.state[i].sum);
  }
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

template <int E, typename T>
__device__ void StoreZeros(T* const (&rows)[2]) {
  const float zeros[E / 8][4] = {}, factors[2] = {};
  StoreRows<E>(rows, zeros, factors);
}

// Block x: a tile of consecutive rows and a kv head. The rows of one sequence after those of another.
template <typename Exponential, typename T, int E>
__global__ void AttentionPagedTileKernel(PagedArgs<T> a) {
  const int group = a.forward.group, tile_tokens = kTileSize / group;
  const int kv_head = static_cast<int>(blockIdx.x) % a.forward.kv_heads;
  int token = a.first_row + static_cast<int>(blockIdx.x) / a.forward.kv_heads * tile_tokens;
  const int tile_end = token + tile_tokens < a.end_row ? token + tile_tokens : a.end_row;
  while (token < tile_end) {
    const int sequence = a.row_sequence[token];
    int run_end = token, last = -1;
    for (; run_end < tile_end && a.row_sequence[run_end] == sequence; ++run_end) {
      if (sequence >= 0 && a.positions[run_end] > last) last = a.positions[run_end];
    }
    const TileRows rows = {token, 0, (run_end - token) * group, group};
    const int row[2] = {rows.Of(0), rows.Of(1)};
    T* const out[2] = {rows.In(a.forward.out, row[0], kv_head, E), rows.In(a.forward.out, row[1], kv_head, E)};
    if (sequence < 0) {
      StoreZeros<E>(out);
    } else {
      const T* const q[2] = {rows.In(a.forward.q, row[0], kv_head, E), rows.In(a.forward.q, row[1], kv_head, E)};
      WarpTile<E> tile;
      LoadRowOperands<E>(tile.q, q);
      for (int i = 0; i < 2; ++i) tile.position[i] = row[i] < 0 ? -1 : a.positions[token + row[i] / group];
      AttendTile<Exponential, T>(tile, KeysOf<E>(a, sequence, kv_head),
                                 {0, last / kBlockKeys + 1, a.forward.state_blocks}, last + 1, a.forward.scale);
      StoreOutput<E>(tile, out);
    }
    token = run_end;
  }
}

// Stores the states of a split and their values, not yet divided.
template <int E>
__device__ void StoreState(const WarpTile<E>& tile, const int64_t (&at)[2], SoftmaxState* states, float* values) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (at[i] < 0) continue;
    if (column == 0) states[at[i]] = tile.state[i];
#pragma unroll
    for (int n = 0; n < E / 8; ++n) {
      float* to = values + at[i] * E + n * 8 + column;
      to[0] = tile.o[n][2 * i];
      to[1] = tile.o[n][2 * i + 1];
    }
  }
}

// One warp. Block x: a row, a kv head and 16 of its query heads; y: a split of the keys.
template <typename Exponential, typename T, int E>
__global__ void AttentionDecodeKernel(PagedArgs<T> a) {
  const int group = a.forward.group, chunks = (group + kWarpRows - 1) / kWarpRows;
  const int chunk = static_cast<int>(blockIdx.x) % chunks;
  const int kv_head = static_cast<int>(blockIdx.x) / chunks % a.forward.kv_heads;
  const int token = static_cast<int>(blockIdx.x) / chunks / a.forward.kv_heads;
  const bool split = gridDim.y > 1;
  const int first_head = chunk * kWarpRows;
  const TileRows rows = {token, first_head, group - first_head < kWarpRows ? group - first_head : kWarpRows, group};
  const int row[2] = {rows.Of(0), rows.Of(1)};
  T* const out[2] = {rows.In(a.forward.out, row[0], kv_head, E), rows.In(a.forward.out, row[1], kv_head, E)};
  const int sequence = a.row_sequence[token];
  if (sequence < 0) {
    if (!split) StoreZeros<E>(out);
    return;
  }
  const int position = a.positions[token], blocks = position / kBlockKeys + 1;
  const int64_t first = int64_t{blockIdx.y} * a.block_blocks;
  if (first >= blocks) return;
  const int end = blocks - first < a.block_blocks ? blocks : static_cast<int>(first) + a.block_blocks;
  const T* const q[2] = {rows.In(a.forward.q, row[0], kv_head, E), rows.In(a.forward.q, row[1], kv_head, E)};
  WarpTile<E> tile;
  LoadRowOperands<E>(tile.q, q);
  for (int i = 0; i < 2; ++i) tile.position[i] = row[i] < 0 ? -1 : position;
  AttendTile<Exponential, T>(tile, KeysOf<E>(a, sequence, kv_head),
                             {static_cast<int>(first), end, a.forward.state_blocks}, position + 1, a.forward.scale);
  if (!split) return StoreOutput<E>(tile, out);
  const int64_t head = (int64_t{token} * a.forward.kv_heads + kv_head) * group;
  int64_t at[2];
  for (int i = 0; i < 2; ++i) at[i] = row[i] < 0 ? -1 : (head + row[i]) * gridDim.y + blockIdx.y;
  StoreState(tile, at, a.states, a.state_values);
}

constexpr int kMergeThreads = 128;

// A warp merges the splits of one row and query head, ascending.
template <typename Exponential, typename T, int E>
__global__ void AttentionMergeKernel(PagedArgs<T> a, int heads, int splits) {
  constexpr int kColumns = (E + kWarp - 1) / kWarp;
  const int64_t index = (int64_t{blockIdx.x} * kMergeThreads + threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (index >= int64_t{a.end_row} * heads) return;
  const int64_t token = index / heads, head = index % heads;
  SoftmaxState state;
  float o[kColumns] = {};
  const int used = a.row_sequence[token] < 0 ? 0 : a.positions[token] / kBlockKeys / a.block_blocks + 1;
  for (int s = 0; s < used; ++s) {
    const MergeFactors factors = Merge<Exponential>(state, a.states[index * splits + s]);
    const float* values = a.state_values + (index * splits + s) * E;
    for (int i = 0; i < kColumns; ++i) {
      const int column = i * kWarp + lane;
      if (column < E) o[i] = MergeValues(o[i], values[column], factors);
    }
  }
  const float factor = used == 0 ? 0.0f : 1.0f / state.sum;
  T* out = a.forward.out.data + token * a.forward.out.stride + head * E;
  for (int i = 0; i < kColumns; ++i) {
    const int column = i * kWarp + lane;
    if (column < E) out[column] = FromFloat<T>(o[i] * factor + 0.0f);
  }
}

// How the keys of decode rows are shared out.
struct SplitPlan {
  int64_t splits;    // blocks of threads that share a row
  int block_blocks;  // blocks of keys of each
  int state_blocks;
};

// Splits with which `rows` keep the device busy.
int64_t WantedSplits(const AttentionShape& shape, int64_t rows) {
  return CeilDiv(kBusyWarps, rows * shape.num_kv_heads * CeilDiv(shape.num_heads / shape.num_kv_heads, kWarpRows));
}

SplitPlan PlanSplits(const AttentionShape& shape, int64_t rows, int64_t max_position, Numerics numerics) {
  const int64_t blocks = max_position / kBlockKeys + 1, wanted = WantedSplits(shape, rows);
  if (numerics == Numerics::kNative) {
    const int64_t each = CeilDiv(blocks, std::min(wanted, blocks));
    return {CeilDiv(blocks, each), static_cast<int>(each), kAllBlocks};
  }
  constexpr int kStateBlocks = static_cast<int>(kAttentionSplit / kBlockKeys);
  if (wanted == 1 || blocks <= kStateBlocks) return {1, kAllBlocks, kStateBlocks};
  return {CeilDiv(blocks, kStateBlocks), kStateBlocks, kStateBlocks};
}

// States of one row and query head are next to each other, the values behind all states, at a multiple of 16 bytes.
int64_t StatesOf(const AttentionShape& shape, int64_t rows, int64_t splits) {
  return CeilDiv(rows * shape.num_heads * splits, 2) * 2;
}

template <typename T>
ForwardArgs<T> MakeForwardArgs(const AttentionShape& shape, const Tensor& q, const Tensor& out, int state_blocks) {
  return {RowsOf<const T>(q),
          RowsOf<T>(out),
          shape.scale,
          static_cast<int>(shape.num_heads / shape.num_kv_heads),
          static_cast<int>(shape.num_kv_heads),
          state_blocks};
}

template <typename Exponential, typename T, int E>
cudaError_t LaunchDecode(PagedArgs<T> args, const AttentionShape& shape, const SplitPlan& plan, int64_t rows,
                         void* scratch, cudaStream_t stream) {
  args.block_blocks = plan.block_blocks;
  args.forward.state_blocks = plan.state_blocks;
  args.end_row = static_cast<int>(rows);
  if (plan.splits > 1) {
    args.states = static_cast<SoftmaxState*>(scratch);
    args.state_values = reinterpret_cast<float*>(args.states + StatesOf(shape, rows, plan.splits));
  }
  const int64_t chunks = CeilDiv(args.forward.group, kWarpRows);
  const cudaError_t error = LaunchShared(AttentionDecodeKernel<Exponential, T, E>, rows * shape.num_kv_heads * chunks,
                                         plan.splits, kWarp, ForwardSharedBytes<E>(kWarp), stream, args);
  if (error != cudaSuccess || plan.splits == 1) return error;
  return Launch(AttentionMergeKernel<Exponential, T, E>, CeilDiv(rows * shape.num_heads * kWarp, kMergeThreads), 1,
                kMergeThreads, stream, args, shape.num_heads, plan.splits);
}

}  // namespace

bool AttentionSupports(const AttentionShape& shape) {
  const int64_t e = shape.head_dim;
  if (e != 16 && e != 32 && e != 64 && e != 96 && e != 128) return false;
  if (shape.num_kv_heads <= 0 || shape.num_heads % shape.num_kv_heads != 0) return false;
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  return group >= 1 && group <= kAttentionGroupMax;
}

int64_t AttentionPagedScratchBytes(const AttentionShape& shape, DType dtype, int64_t decode_rows, int64_t max_position,
                                   Numerics numerics) {
  if (dtype == DType::kF32) return 0;
  // Fewer rows may have more splits, and under native numerics fewer positions too.
  const int64_t blocks = max_position / kBlockKeys + 1;
  int64_t most = 0;
  for (int64_t rows = 1; rows <= decode_rows; ++rows) {
    const int64_t splits = numerics == Numerics::kNative ? std::min(WantedSplits(shape, rows), blocks)
                                                         : PlanSplits(shape, rows, max_position, numerics).splits;
    if (splits > 1) most = std::max(most, StatesOf(shape, rows, splits));
  }
  return most * (static_cast<int64_t>(sizeof(SoftmaxState)) + shape.head_dim * static_cast<int64_t>(sizeof(float)));
}

cudaError_t AttentionPaged(const AttentionShape& shape, const Tensor& q, const PagedView& view, int64_t max_position,
                           Numerics numerics, void* scratch, const Tensor& out, cudaStream_t stream) {
  CheckShape(shape);
  CheckHeads(q, out.dtype, out.rows, shape.num_heads, shape.head_dim);
  CheckHeads(out, out.dtype, q.rows, shape.num_heads, shape.head_dim);
  CheckLength(max_position);
  CheckLength(q.rows);
  LOCKSTEP_CHECK(view.decode_rows >= 0 && view.decode_rows <= q.rows, "decode rows are the first of the call's rows");
  LOCKSTEP_CHECK(
      reinterpret_cast<uintptr_t>(view.key_pages) % 16 == 0 && reinterpret_cast<uintptr_t>(view.value_pages) % 16 == 0,
      "pages begin at multiples of 16 bytes");
  if (q.dtype == DType::kF32) return AttentionPagedF32(shape, q, view, out, stream);
  return WithAttentionTypes(
      q.dtype, shape.head_dim, numerics,
      [&]<typename T, int E, typename Exponential>(T, std::integral_constant<int, E>, Exponential) -> cudaError_t {
        const int state_blocks =
            numerics == Numerics::kMatched ? static_cast<int>(kAttentionSplit / kBlockKeys) : kAllBlocks;
        const PagedArgs<T> args = {MakeForwardArgs<T>(shape, q, out, state_blocks),
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
        if (view.decode_rows > 0) {
          const SplitPlan plan = PlanSplits(shape, view.decode_rows, max_position, numerics);
          LOCKSTEP_CHECK(plan.splits == 1 || scratch != nullptr,
                         "split keys need AttentionPagedScratchBytes of scratch");
          const cudaError_t error =
              LaunchDecode<Exponential, T, E>(args, shape, plan, view.decode_rows, scratch, stream);
          if (error != cudaSuccess) return error;
        }
        const int64_t tiles = CeilDiv(q.rows - view.decode_rows, kTileSize / args.forward.group);
        return LaunchShared(AttentionPagedTileKernel<Exponential, T, E>, tiles * shape.num_kv_heads, 1, kTileThreads,
                            ForwardSharedBytes<E>(kTileThreads), stream, args);
      });
}

cudaError_t AttentionPacked(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                            const int32_t* cu_seqlens, int64_t num_sequences, int64_t max_length, Numerics numerics,
                            const Tensor& out, const Tensor& lse, cudaStream_t stream) {
  CheckShape(shape);
  CheckHeads(q, q.dtype, q.rows, shape.num_heads, shape.head_dim);
  CheckHeads(k, q.dtype, q.rows, shape.num_kv_heads, shape.head_dim);
  CheckHeads(v, q.dtype, q.rows, shape.num_kv_heads, shape.head_dim);
  CheckHeads(out, q.dtype, q.rows, shape.num_heads, shape.head_dim);
  CheckLse(lse, q.rows, shape.num_heads);
  CheckLength(max_length * (shape.num_heads / shape.num_kv_heads));
  if (q.dtype == DType::kF32) {
    return AttentionPackedF32(shape, q, k, v, cu_seqlens, num_sequences, max_length, out, lse, stream);
  }
  return WithAttentionTypes(
      q.dtype, shape.head_dim, numerics,
      [&]<typename T, int E, typename Exponential>(T, std::integral_constant<int, E>, Exponential) {
        const int state_blocks =
            numerics == Numerics::kMatched ? static_cast<int>(kAttentionSplit / kBlockKeys) : kAllBlocks;
        const PackedArgs<T> args = {MakeForwardArgs<T>(shape, q, out, state_blocks), RowsOf<const T>(k),
                                    RowsOf<const T>(v), cu_seqlens, RowsOf<float>(lse)};
        const int64_t tiles = CeilDiv(max_length, kTileSize / args.forward.group);
        return LaunchShared(AttentionPackedKernel<Exponential, T, E>, tiles * shape.num_kv_heads, num_sequences,
                            kTileThreads, ForwardSharedBytes<E>(kTileThreads), stream, args);
      });
}

}  // namespace lockstep::cuda
