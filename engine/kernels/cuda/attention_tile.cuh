// What the attention kernels of 16-bit dtypes are made of: a sequence's keys and values brought to shared memory from
// rows or from pages, operands loaded from there, and a warp's 16 rows on their way over the keys. Operand layouts:
// mma.cuh; g = lane / 4, t = lane % 4 there and here: a thread has parts of rows g and g + 8.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_TILE_CUH_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_TILE_CUH_

#include "engine/kernels/cuda/attention.h"
#include "engine/kernels/cuda/attention_state.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/cuda/mma.cuh"

namespace lockstep::cuda {

inline constexpr int kWarpRows = 16;
inline constexpr int kBlockKeys = static_cast<int>(kDeviceAttentionBlock);
inline constexpr int kBlockPages = static_cast<int>(kDeviceAttentionBlock / kPageTokens);
inline constexpr int kCopy = 8;  // elements of one asynchronous copy
// A row of E elements in shared memory: 16 bytes more than it needs, so that the 8 rows of an 8 x 8 matrix lie in
// different banks.
template <int E>
inline constexpr int kSharedRow = E + 8;

// ---- keys and values of one sequence and kv head

// kRows rows of E elements from consecutive rows `stride` apart; those at and beyond `count` become zeros.
template <int E, int kRows, typename T>
__device__ void CopyRows(T* shared, const T* from, int64_t stride, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * E / kCopy; i += static_cast<int>(blockDim.x)) {
    const int row = i / (E / kCopy), column = i % (E / kCopy) * kCopy;
    const bool valid = row < count;
    CpAsync16(shared + row * kSharedRow<E> + column, valid ? from + row * stride + column : from, valid);
  }
}

// Rows of k and v, from position 0.
template <typename T, int E>
struct PackedKeys {
  const T* keys;
  const T* values;
  int64_t key_stride, value_stride;

  // Positions [begin, begin + kBlockKeys), those from `end` on as zeros; begin < end.
  __device__ void CopyKeys(T* shared, int begin, int end) const {
    CopyRows<E, kBlockKeys>(shared, keys + begin * key_stride, key_stride, end - begin);
  }
  __device__ void CopyValues(T* shared, int begin, int end) const {
    CopyRows<E, kBlockKeys>(shared, values + begin * value_stride, value_stride, end - begin);
  }
  // Operand b of 16 keys (two of 8 columns) at e 16 k: one key a row.
  __device__ static void LoadKeys(uint32_t (&b)[4], const T* shared, int key16, int k) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    LdMatrix4(b, shared + (key16 * 16 + lane % 8 + lane / 16 * 8) * kSharedRow<E> + k * 16 + lane / 8 % 2 * 8);
  }
};

// Pages, from the sequence's block table. A page of keys stays as it is, [E][16]; its two halves of a row change places
// in every other four rows, for the banks' sake.
template <typename T, int E>
struct PagedKeys {
  const int32_t* pages;
  const T* keys;  // of page 0, this kv head
  const T* values;
  int64_t page_stride;  // elements from page to page

  __device__ static int KeyAt(int page, int e, int half) {
    return (page * E + e) * static_cast<int>(kPageTokens) + (half ^ (e / 4 % 2)) * kCopy;
  }
  // The pages of a block's positions below `end`; looked up together, before the copies that wait for them. Beyond
  // `end` any readable address does.
  __device__ void FindPages(const T* (&found)[kBlockPages], const T* first, int begin, int end) const {
#pragma unroll
    for (int p = 0; p < kBlockPages; ++p) {
      const int position = begin + p * static_cast<int>(kPageTokens);
      found[p] = position < end ? first + pages[position / kPageTokens] * page_stride : first;
    }
  }

  // In copies of 8 elements a page of keys is [E][2], one of values [16][E / 8].
  __device__ void CopyKeys(T* shared, int begin, int end) const {
    const T* from[kBlockPages];
    FindPages(from, keys, begin, end);
#pragma unroll
    for (int p = 0; p < kBlockPages; ++p) {
      for (int i = static_cast<int>(threadIdx.x); i < 2 * E; i += static_cast<int>(blockDim.x)) {
        const int position = begin + p * static_cast<int>(kPageTokens) + i % 2 * kCopy;
        CpAsync16(shared + KeyAt(p, i / 2, i % 2), from[p] + i * kCopy, position < end);
      }
    }
  }
  __device__ void CopyValues(T* shared, int begin, int end) const {
    const T* from[kBlockPages];
    FindPages(from, values, begin, end);
#pragma unroll
    for (int p = 0; p < kBlockPages; ++p) {
      for (int i = static_cast<int>(threadIdx.x); i < 2 * E; i += static_cast<int>(blockDim.x)) {
        const int row = p * static_cast<int>(kPageTokens) + i / (E / kCopy), column = i % (E / kCopy) * kCopy;
        CpAsync16(shared + row * kSharedRow<E> + column, from[p] + i * kCopy, begin + row < end);
      }
    }
  }
  __device__ static void LoadKeys(uint32_t (&b)[4], const T* shared, int key16, int k) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    LdMatrix4Trans(b, shared + KeyAt(key16, k * 16 + lane / 8 % 2 * 8 + lane % 8, lane / 16));
  }
};

// ---- operands

// Operand b of 16 rows (the depth) and columns 16 n .. 16 n + 15 (two of 8) of rows in shared memory.
template <int E, typename T>
__device__ void LoadDepthRows(uint32_t (&b)[4], const T* shared, int row16, int n) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  LdMatrix4Trans(b, shared + (row16 * 16 + lane % 16) * kSharedRow<E> + n * 16 + lane / 16 * 8);
}

// d0, d1 += a b: the two halves of b's 16 columns.
template <typename T>
__device__ void MmaPair(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
  Mma16816<T>(d0, a, low);
  Mma16816<T>(d1, a, high);
}

// Two results of 16 x 8 as an operand a of 16 x 16, rounded.
template <typename T>
__device__ void PackOperand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = PackPair<T>(left[0], left[1]);
  a[1] = PackPair<T>(left[2], left[3]);
  a[2] = PackPair<T>(right[0], right[1]);
  a[3] = PackPair<T>(right[2], right[3]);
}

// The thread's part of operand a from rows g and g + 8, E elements each (null: zeros), 4-byte aligned.
template <int E, typename T>
__device__ void LoadRowOperands(uint32_t (&a)[E / 16][4], const T* const (&rows)[2]) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int k = 0; k < E / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T* row = rows[i % 2];
      a[k][i] = row == nullptr ? 0u : *reinterpret_cast<const uint32_t*>(row + k * 16 + column + i / 2 * 8);
    }
  }
}

// Stores the thread's parts of two rows of sums, times a factor each. Adding 0 makes one zero of two: rows that saw
// more masked keys than others may have another sign there.
template <int E, typename T>
__device__ void StoreRows(T* const (&rows)[2], const float (&sums)[E / 8][4], const float (&factors)[2]) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (rows[i] == nullptr) continue;
#pragma unroll
    for (int n = 0; n < E / 8; ++n) {
      const uint32_t pair = PackPair<T>(sums[n][2 * i] * factors[i] + 0.0f, sums[n][2 * i + 1] * factors[i] + 0.0f);
      *reinterpret_cast<uint32_t*>(rows[i] + n * 8 + column) = pair;
    }
  }
}

__device__ inline float QuadSum(float x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}
__device__ inline float QuadMax(float x) {
  x = ScalarLane::Max(x, __shfl_xor_sync(kFullWarp, x, 1));
  return ScalarLane::Max(x, __shfl_xor_sync(kFullWarp, x, 2));
}

// ---- rows

// The rows of a tile are the pairs of a token and a query head of one kv head, token-major: row r is token r / group.
struct TileRows {
  int64_t token;  // of the tensors
  int first;      // row (of this token and the following ones) that the tile begins with
  int count;      // rows
  int group;      // H / G

  // Row of the tile that is row i (0: g, 1: g + 8) of this thread; -1: none.
  __device__ int Of(int i) const { return OfWarp(static_cast<int>(threadIdx.x) / kWarp, i); }
  // The same, were this thread in that warp.
  __device__ int OfWarp(int warp, int i) const {
    const int row = warp * kWarpRows + static_cast<int>(threadIdx.x) % kWarp / 4 + i * 8;
    return row < count ? first + row : -1;
  }
  // Where the row's head begins in a tensor of H heads; null for none.
  template <typename T>
  __device__ T* In(const Rows<T>& tensor, int row, int64_t kv_head, int e) const {
    if (row < 0) return nullptr;
    return tensor.data + (token + row / group) * tensor.stride + (kv_head * group + row % group) * e;
  }
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_TILE_CUH_
