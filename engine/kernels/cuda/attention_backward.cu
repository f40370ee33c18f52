// Attention backward for 16-bit dtypes (Dao 2023): D, then d_q by tiles of rows over ascending keys, then d_k and d_v
// by tiles of keys over ascending rows. A warp has 16 rows, or 16 keys, and all sums of theirs.
#include "engine/kernels/cuda/attention.h"
#include "engine/kernels/cuda/attention_launch.h"
#include "engine/kernels/cuda/attention_tile.cuh"

namespace lockstep::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTile = kWarps * kWarpRows;  // rows, or keys, of a block of threads
constexpr int kStep = 32;                  // keys, or rows, that it goes over at a time

template <typename T>
struct DeltaArgs {
  Rows<const T> d_out, out;
  float* delta;
  int64_t count;  // T H
  int heads, head_dim;
};

// Eight threads have the lanes of one row and head.
template <typename T>
__global__ void AttentionDeltaKernel(DeltaArgs<T> a) {
  const int64_t index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kVirtualLanes;
  const int lane = static_cast<int>(threadIdx.x) % static_cast<int>(kVirtualLanes);
  if (index >= a.count) return;
  const int64_t token = index / a.heads, column = index % a.heads * a.head_dim;
  const T* d_out = a.d_out.data + token * a.d_out.stride + column;
  const T* out = a.out.data + token * a.out.stride + column;
  float sum = 0;
  for (int e = lane; e < a.head_dim; e += kVirtualLanes) sum = fmaf(ToFloat(d_out[e]), ToFloat(out[e]), sum);
  sum = SumLanes(sum, LaneGroupMask());
  if (lane == 0) a.delta[index] = sum;
}

template <typename T>
struct BackwardArgs {
  Rows<const T> d_out, q, k, v;
  Rows<const float> lse, delta;  // [T, H]
  const int32_t* cu_seqlens;
  Rows<T> d_q, d_k, d_v;
  float scale;
  int group;     // H / G
  int kv_heads;  // G
};

template <int E>
constexpr int64_t SharedBytes(int rows) {
  return 2 * int64_t{rows} * kSharedRow<E>;
}

// The products of a warp's 16 rows (a) with 16 rows in shared memory: two results of 16 x 8.
template <typename T, int E>
__device__ void RowProducts(float (&left)[4], float (&right)[4], const uint32_t (&a)[E / 16][4], const T* shared,
                            int row16) {
#pragma unroll
  for (int c = 0; c < 4; ++c) left[c] = right[c] = 0;
#pragma unroll
  for (int k = 0; k < E / 16; ++k) {
    uint32_t b[4];
    PackedKeys<T, E>::LoadKeys(b, shared, row16, k);
    MmaPair<T>(left, right, a[k], b);
  }
}

// sums += a (16 x 16) times 16 rows in shared memory.
template <typename T, int E>
__device__ void AddProducts(float (&sums)[E / 8][4], const uint32_t (&a)[4], const T* shared, int row16) {
#pragma unroll
  for (int n = 0; n < E / 16; ++n) {
    uint32_t b[4];
    LoadDepthRows<E>(b, shared, row16, n);
    MmaPair<T>(sums[2 * n], sums[2 * n + 1], a, b);
  }
}

// (product, d_weight) of a row and a key it sees or not -> (p, gradient of the score before scale).
template <typename Exponential>
__device__ void WeighPair(float& product, float& d_weight, bool seen, float scale, float lse, float delta) {
  const float p = seen ? Exponential::Of(product * scale - lse) : 0.0f;
  d_weight = seen ? p * (d_weight - delta) : 0.0f;
  product = p;
}

// Block x: a tile of tokens, the last first, and a kv head; y: a sequence.
template <typename Exponential, typename T, int E>
__global__ void AttentionQueryGradientKernel(BackwardArgs<T> a) {
  constexpr int kStage = 2 * kStep * kSharedRow<E>;  // keys, then values
  T* const shared = reinterpret_cast<T*>(DynamicShared());
  const int group = a.group, tile_tokens = kTile / group;
  const int tiles = static_cast<int>(gridDim.x) / a.kv_heads, kv_head = static_cast<int>(blockIdx.x) % a.kv_heads;
  const int token = (tiles - 1 - static_cast<int>(blockIdx.x) / a.kv_heads) * tile_tokens;
  const int64_t begin = a.cu_seqlens[blockIdx.y];
  const int length = static_cast<int>(a.cu_seqlens[blockIdx.y + 1] - begin);
  if (token >= length) return;
  const int tokens = length - token < tile_tokens ? length - token : tile_tokens;
  const TileRows rows = {begin + token, 0, tokens * group, group};
  const int row[2] = {rows.Of(0), rows.Of(1)};
  const T* const q_rows[2] = {rows.In(a.q, row[0], kv_head, E), rows.In(a.q, row[1], kv_head, E)};
  const T* const d_rows[2] = {rows.In(a.d_out, row[0], kv_head, E), rows.In(a.d_out, row[1], kv_head, E)};
  uint32_t q[E / 16][4], d_out[E / 16][4];
  LoadRowOperands<E>(q, q_rows);
  LoadRowOperands<E>(d_out, d_rows);
  float lse[2] = {}, delta[2] = {};
  int position[2];
  for (int i = 0; i < 2; ++i) {
    position[i] = row[i] < 0 ? -1 : token + row[i] / group;
    if (row[i] < 0) continue;
    lse[i] = *rows.In(a.lse, row[i], kv_head, 1);
    delta[i] = *rows.In(a.delta, row[i], kv_head, 1);
  }
  const T* const keys = a.k.data + begin * a.k.stride + kv_head * E;
  const T* const values = a.v.data + begin * a.v.stride + kv_head * E;
  const int end = token + tokens;
  const auto copy = [&](int key, T* stage) {
    CopyRows<E, kStep>(stage, keys + key * a.k.stride, a.k.stride, end - key);
    CopyRows<E, kStep>(stage + kStep * kSharedRow<E>, values + key * a.v.stride, a.v.stride, end - key);
  };
  float sums[E / 8][4] = {};
  copy(0, shared);
  CpAsyncCommit();
  for (int key = 0, stage = 0; key < end; key += kStep, stage ^= 1) {
    if (key + kStep < end) copy(key + kStep, shared + (stage ^ 1) * kStage);
    CpAsyncCommit();
    CpAsyncWait<1>();
    __syncthreads();
    const T* const key_rows = shared + stage * kStage;
    const T* const value_rows = key_rows + kStep * kSharedRow<E>;
#pragma unroll
    for (int k16 = 0; k16 < kStep / 16; ++k16) {
      float s[2][4], d_p[2][4];
      RowProducts<T, E>(s[0], s[1], q, key_rows, k16);
      RowProducts<T, E>(d_p[0], d_p[1], d_out, value_rows, k16);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int at = key + k16 * 16 + n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + c % 2;
          WeighPair<Exponential>(s[n][c], d_p[n][c], at <= position[c / 2], a.scale, lse[c / 2], delta[c / 2]);
        }
      }
      uint32_t d_s[4];
      PackOperand<T>(d_s, d_p[0], d_p[1]);
      AddProducts<T, E>(sums, d_s, key_rows, k16);
    }
    __syncthreads();
  }
  T* const to[2] = {rows.In(a.d_q, row[0], kv_head, E), rows.In(a.d_q, row[1], kv_head, E)};
  const float factors[2] = {a.scale, a.scale};
  StoreRows<E>(to, sums, factors);
}

// kStep rows of q, or d_out, from row `first` of the sequence on (token-major) below `end`; the others as zeros.
template <int E, typename T>
__device__ void CopyHeadRows(T* shared, const TileRows& rows, const Rows<const T>& tensor, int first, int end,
                             int kv_head) {
  for (int i = static_cast<int>(threadIdx.x); i < kStep * E / kCopy; i += kThreads) {
    const int row = i / (E / kCopy), column = i % (E / kCopy) * kCopy;
    const bool valid = first + row < end;
    const T* from = valid ? rows.In(tensor, first + row, kv_head, E) + column : tensor.data;
    CpAsync16(shared + row * kSharedRow<E> + column, from, valid);
  }
}

// Operand a of the warp's 16 rows in shared memory, at e 16 k.
template <int E, typename T>
__device__ void LoadTileRows(uint32_t (&a)[4], const T* shared, int k) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  LdMatrix4(a, shared + (warp * kWarpRows + lane % 16) * kSharedRow<E> + k * 16 + lane / 16 * 8);
}

// As RowProducts, with the warp's rows in shared memory too: registers hold the two sums.
template <typename T, int E>
__device__ void TileProducts(float (&left)[4], float (&right)[4], const T* tile, const T* shared, int row16) {
#pragma unroll
  for (int c = 0; c < 4; ++c) left[c] = right[c] = 0;
#pragma unroll
  for (int k = 0; k < E / 16; ++k) {
    uint32_t a[4], b[4];
    LoadTileRows<E>(a, tile, k);
    PackedKeys<T, E>::LoadKeys(b, shared, row16, k);
    MmaPair<T>(left, right, a, b);
  }
}

// Block x: a tile of keys and their head; y: a sequence. Scores are transposed here: rows of products are keys.
template <typename Exponential, typename T, int E>
__global__ void AttentionKeyGradientKernel(BackwardArgs<T> a) {
  constexpr int kStage = 2 * kStep * kSharedRow<E>;  // q, then d_out
  T* const keys = reinterpret_cast<T*>(DynamicShared());
  T* const values = keys + kTile * kSharedRow<E>;
  T* const shared = values + kTile * kSharedRow<E>;
  const int group = a.group, kv_head = static_cast<int>(blockIdx.x) % a.kv_heads;
  const int first_key = static_cast<int>(blockIdx.x) / a.kv_heads * kTile;
  const int64_t begin = a.cu_seqlens[blockIdx.y];
  const int length = static_cast<int>(a.cu_seqlens[blockIdx.y + 1] - begin);
  if (first_key >= length) return;
  const TileRows rows = {begin, 0, length * group, group};
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int key = first_key + static_cast<int>(threadIdx.x) / kWarp * kWarpRows + lane / 4;  // and key + 8
  const auto copy = [&](int row, T* stage) {
    CopyHeadRows<E>(stage, rows, a.q, row, rows.count, kv_head);
    CopyHeadRows<E>(stage + kStep * kSharedRow<E>, rows, a.d_out, row, rows.count, kv_head);
  };
  CopyRows<E, kTile>(keys, a.k.data + (begin + first_key) * a.k.stride + kv_head * E, a.k.stride, length - first_key);
  CopyRows<E, kTile>(values, a.v.data + (begin + first_key) * a.v.stride + kv_head * E, a.v.stride, length - first_key);
  copy(first_key * group, shared);
  CpAsyncCommit();
  float d_k[E / 8][4] = {}, d_v[E / 8][4] = {};
  for (int first = first_key * group, stage = 0; first < rows.count; first += kStep, stage ^= 1) {
    if (first + kStep < rows.count) copy(first + kStep, shared + (stage ^ 1) * kStage);
    CpAsyncCommit();
    CpAsyncWait<1>();
    __syncthreads();
    const T* const q_rows = shared + stage * kStage;
    const T* const d_rows = q_rows + kStep * kSharedRow<E>;
#pragma unroll
    for (int r16 = 0; r16 < kStep / 16; ++r16) {
      float s[2][4], d_p[2][4];
      TileProducts<T, E>(s[0], s[1], keys, q_rows, r16);
      TileProducts<T, E>(d_p[0], d_p[1], values, d_rows, r16);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int row = first + r16 * 16 + n * 8 + lane % 4 * 2 + c;
          const bool there = row < rows.count;
          const int token = there ? row / group : -1;
          const float lse = there ? *rows.In(a.lse, row, kv_head, 1) : 0.0f;
          const float delta = there ? *rows.In(a.delta, row, kv_head, 1) : 0.0f;
          WeighPair<Exponential>(s[n][c], d_p[n][c], key <= token, a.scale, lse, delta);
          WeighPair<Exponential>(s[n][c + 2], d_p[n][c + 2], key + 8 <= token, a.scale, lse, delta);
        }
      }
      uint32_t p[4], d_s[4];
      PackOperand<T>(p, s[0], s[1]);
      PackOperand<T>(d_s, d_p[0], d_p[1]);
      AddProducts<T, E>(d_v, p, d_rows, r16);
      AddProducts<T, E>(d_k, d_s, q_rows, r16);
    }
    __syncthreads();
  }
  const TileRows tile = {begin + first_key, 0, length - first_key < kTile ? length - first_key : kTile, 1};
  const int row[2] = {tile.Of(0), tile.Of(1)};
  T* const to_k[2] = {tile.In(a.d_k, row[0], kv_head, E), tile.In(a.d_k, row[1], kv_head, E)};
  T* const to_v[2] = {tile.In(a.d_v, row[0], kv_head, E), tile.In(a.d_v, row[1], kv_head, E)};
  const float scales[2] = {a.scale, a.scale}, ones[2] = {1.0f, 1.0f};
  StoreRows<E>(to_k, d_k, scales);
  StoreRows<E>(to_v, d_v, ones);
}

template <typename T>
cudaError_t LaunchDelta(const AttentionShape& shape, const Tensor& d_out, const Tensor& out, float* delta,
                        cudaStream_t stream) {
  const DeltaArgs<T> args = {RowsOf<const T>(d_out),
                             RowsOf<const T>(out),
                             delta,
                             out.rows * shape.num_heads,
                             static_cast<int>(shape.num_heads),
                             static_cast<int>(shape.head_dim)};
  return Launch(AttentionDeltaKernel<T>, CeilDiv(args.count * kVirtualLanes, kThreads), 1, kThreads, stream, args);
}

}  // namespace

int64_t AttentionBackwardScratch(const AttentionShape& shape, int64_t rows) { return rows * shape.num_heads; }

cudaError_t AttentionPackedBackward(const AttentionShape& shape, const Tensor& d_out, const Tensor& q, const Tensor& k,
                                    const Tensor& v, const Tensor& out, const Tensor& lse, const int32_t* cu_seqlens,
                                    int64_t num_sequences, int64_t max_length, Numerics numerics, const Tensor& d_q,
                                    const Tensor& d_k, const Tensor& d_v, float* scratch, cudaStream_t stream) {
  CheckShape(shape);
  for (const Tensor* tensor : {&q, &d_out, &out, &d_q}) {
    CheckHeads(*tensor, q.dtype, q.rows, shape.num_heads, shape.head_dim);
  }
  for (const Tensor* tensor : {&k, &v, &d_k, &d_v}) {
    CheckHeads(*tensor, q.dtype, q.rows, shape.num_kv_heads, shape.head_dim);
  }
  CheckLse(lse, q.rows, shape.num_heads);
  CheckLength(max_length * (shape.num_heads / shape.num_kv_heads));
  LOCKSTEP_CHECK(lse.data != nullptr && (scratch != nullptr || q.rows == 0),
                 "attention's backward needs lse and AttentionBackwardScratch floats");
  const cudaError_t error =
      WithStorageType(q.dtype, [&]<typename T>(T) { return LaunchDelta<T>(shape, d_out, out, scratch, stream); });
  if (error != cudaSuccess) return error;
  if (q.dtype == DType::kF32) {
    return AttentionPackedBackwardF32(shape, d_out, q, k, v, lse, scratch, cu_seqlens, num_sequences, max_length, d_q,
                                      d_k, d_v, stream);
  }
  const auto launch = [&]<typename T, int E, typename Exponential>(T, std::integral_constant<int, E>, Exponential) {
    const BackwardArgs<T> args = {RowsOf<const T>(d_out),
                                  RowsOf<const T>(q),
                                  RowsOf<const T>(k),
                                  RowsOf<const T>(v),
                                  RowsOf<const float>(lse),
                                  {scratch, shape.num_heads},
                                  cu_seqlens,
                                  RowsOf<T>(d_q),
                                  RowsOf<T>(d_k),
                                  RowsOf<T>(d_v),
                                  shape.scale,
                                  static_cast<int>(shape.num_heads / shape.num_kv_heads),
                                  static_cast<int>(shape.num_kv_heads)};
    const cudaError_t first = LaunchShared(AttentionQueryGradientKernel<Exponential, T, E>,
                                           CeilDiv(max_length, kTile / args.group) * shape.num_kv_heads, num_sequences,
                                           kThreads, SharedBytes<E>(4 * kStep), stream, args);
    if (first != cudaSuccess) return first;
    return LaunchShared(AttentionKeyGradientKernel<Exponential, T, E>, CeilDiv(max_length, kTile) * shape.num_kv_heads,
                        num_sequences, kThreads, SharedBytes<E>(2 * kTile + 4 * kStep), stream, args);
  };
  return WithAttentionTypes(q.dtype, shape.head_dim, numerics, launch);
}

}  // namespace lockstep::cuda
