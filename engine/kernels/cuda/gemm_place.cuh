// Which part of a Product a block works on, and what becomes of its sums: shared by the kernels of gemm.h.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_PLACE_CUH_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_PLACE_CUH_

#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/gemm_product.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {

// Tiles along j that share their tiles of a while those are in the L2 cache.
inline constexpr unsigned kRasterGroup = 8;
inline constexpr int64_t kTileMax = 128;

// T: as it is stored (16-bit types as uint16_t). Sizes fit 32 bits (PlaceBlocks checks), which saves registers.
template <typename T>
struct Place {
  const T *a, *b;                 // of the expert, at its first row (r) of the cut
  int64_t out_offset;             // elements from out to the expert's first
  int64_t residual_offset;        // elements from residual to the expert's first
  int i, j;                       // the tile's first element
  int size_i, size_j, reduction;  // of the expert
  bool empty;                     // nothing to do
};

// Blocks of the grid for tiles of tile_i x tile_j; sets product.tiles_i and slots.
inline int64_t PlaceBlocks(Product& product, int64_t tile_i, int64_t tile_j) {
  constexpr int64_t kMax = 0x7FFFFFFF - kTileMax;
  LOCKSTEP_CHECK(product.size_i <= kMax && product.size_j <= kMax && product.reduction <= kMax,
                 "a product's sizes fit 32 bits");
  int64_t slots = CeilDiv(product.size_j, tile_j);
  // Every expert may have one tile that is not full.
  if (product.cut == ExpertCut::kRows && slots > 0) slots += product.experts.num_experts;
  if (product.cut == ExpertCut::kReduction) slots *= product.experts.num_experts;
  const int64_t tiles_i = CeilDiv(product.size_i, tile_i);
  LOCKSTEP_CHECK(slots <= kGridXMax, "a product's tiles fit 32 bits");
  product.slots = static_cast<uint32_t>(slots);
  product.tiles_i = static_cast<uint32_t>(tiles_i);
  return slots * tiles_i;
}

// In 32 bits: a quotient of 64 is a hundred instructions, and the whole block waits for this one.
template <typename T>
__device__ inline Place<T> FindPlace(const Product& p, unsigned tile_i, unsigned tile_j) {
  const unsigned across = kRasterGroup * p.tiles_i, block = blockIdx.x;  // a tile is 16 wide: it fits
  const unsigned first = block / across * kRasterGroup, within = block % across;
  const unsigned group = p.slots - first < kRasterGroup ? p.slots - first : kRasterGroup;
  unsigned slot = first + within % group;
  Place<T> place = {static_cast<const T*>(p.a.data), static_cast<const T*>(p.b.data), 0, 0, 0, 0, 0, 0, 0, false};
  place.i = static_cast<int>(within / group * tile_i);
  place.size_i = static_cast<int>(p.size_i);
  place.size_j = static_cast<int>(p.size_j);
  place.reduction = static_cast<int>(p.reduction);
  if (p.cut == ExpertCut::kRows) {
    int64_t expert = 0;
    unsigned begin = static_cast<unsigned>(p.experts.offsets[0]), end = 0;
    for (; expert < p.experts.num_experts; ++expert, begin = end) {
      end = static_cast<unsigned>(p.experts.offsets[expert + 1]);
      const unsigned tiles = (end - begin + tile_j - 1) / tile_j;
      if (slot < tiles) break;
      slot -= tiles;
    }
    place.empty = expert == p.experts.num_experts;
    place.a += expert * p.a_expert;
    place.b += begin * p.b.stride;
    place.out_offset = begin * p.out_stride;
    place.residual_offset = begin * p.residual_stride;
    place.size_j = static_cast<int>(end - begin);
  }
  if (p.cut == ExpertCut::kReduction) {
    const unsigned tiles = (static_cast<unsigned>(p.size_j) + tile_j - 1) / tile_j, expert = slot / tiles;
    slot %= tiles;
    const int64_t begin = p.experts.offsets[expert];
    place.reduction = static_cast<int>(p.experts.offsets[expert + 1] - begin);
    place.empty = place.reduction == 0;
    place.a += begin * p.a.stride;
    place.b += begin * p.b.stride;
    place.out_offset = expert * p.out_expert;
  }
  place.j = static_cast<int>(slot * tile_j);
  return place;
}

// To the whole block, in shared memory. False where there is nothing to do.
template <typename T>
__device__ inline bool SharePlace(const Product& p, unsigned tile_i, unsigned tile_j, Place<T>& shared) {
  if (threadIdx.x == 0) shared = FindPlace<T>(p, tile_i, tile_j);
  __syncthreads();
  return !shared.empty;
}

// The end of `count` <= 8 consecutive sums from out[j][i] on. Bias: DType's C++ type.
template <typename Bias, typename Out, typename T>
__device__ inline void FinishSumsAs(const Product& p, const Place<T>& place, int j, int i, int64_t count,
                                    float (&v)[kVector]) {
  float other[kVector];
  if (p.bias != nullptr) {
    Load(static_cast<const Bias*>(p.bias) + i, count, other);
#pragma unroll
    for (int e = 0; e < kVector; ++e) v[e] += other[e];
  }
  Out* out = static_cast<Out*>(p.out) + place.out_offset + j * p.out_stride + i;
  if (p.residual != nullptr) {
    Load(static_cast<const Out*>(p.residual) + place.residual_offset + j * p.residual_stride + i, count, other);
#pragma unroll
    for (int e = 0; e < kVector; ++e) v[e] = ToFloat(FromFloat<Out>(v[e])) + other[e];
  }
  if (p.accumulate) {
    Load(out, count, other);
#pragma unroll
    for (int e = 0; e < kVector; ++e) v[e] += other[e];
  }
  Store(out, count, v);
}

template <typename Bias, typename T>
__device__ inline void FinishSums(const Product& p, const Place<T>& place, int j, int i, float (&v)[kVector]) {
  const int count = place.size_i - i;
  if (j >= place.size_j || count <= 0) return;
  if (p.out_fp32) {
    FinishSumsAs<Bias, float>(p, place, j, i, count, v);
  } else {
    FinishSumsAs<Bias, Bias>(p, place, j, i, count, v);
  }
}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_PLACE_CUH_
