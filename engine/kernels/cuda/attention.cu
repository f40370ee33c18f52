// Attention forward for 16-bit dtypes, tiles of rows: packed, and prefills over pages (attention_forward.cuh). And the
// launchers of attention.h; decode rows are attention_decode.cu's.
#include "engine/kernels/cuda/attention_forward.cuh"

namespace lockstep::cuda {
namespace {

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

template <int E, typename T>
__device__ void StoreZeros(T* const (&rows)[2]) {
  const float zeros[E / 8][4] = {}, factors[2] = {};
  StoreRows<E>(rows, zeros, factors);
}

// Block x: a tile of consecutive rows and a kv head. The rows of one sequence after those of another.
template <typename Exponential, typename T, int E>
__global__ void AttentionPagedTileKernel(PagedArgs<T> a) {
  AwaitPrevious();
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

}  // namespace

bool AttentionSupports(const AttentionShape& shape) {
  const int64_t e = shape.head_dim;
  if (e != 16 && e != 32 && e != 64 && e != 96 && e != 128) return false;
  if (shape.num_kv_heads <= 0 || shape.num_heads % shape.num_kv_heads != 0) return false;
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  return group >= 1 && group <= kAttentionGroupMax;
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
  if (view.decode_rows > 0) {
    const cudaError_t error = AttentionDecode(shape, q, view, max_position, numerics, scratch, out, stream);
    if (error != cudaSuccess) return error;
  }
  return WithAttentionTypes(
      q.dtype, shape.head_dim, numerics,
      [&]<typename T, int E, typename Exponential>(T, std::integral_constant<int, E>, Exponential) {
        const PagedArgs<T> args = MakePagedArgs<T>(shape, q, view, numerics, out);
        const int64_t tiles = CeilDiv(q.rows - view.decode_rows, kTileSize / args.forward.group);
        return LaunchBehind(AttentionPagedTileKernel<Exponential, T, E>, tiles * shape.num_kv_heads, 1, kTileThreads,
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
