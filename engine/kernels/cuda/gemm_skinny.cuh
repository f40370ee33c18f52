// Linear for few rows: weights are read once and nothing waits for anybody. A warp has 16 weight rows (i) and one slice
// of k, with its own stages of cp.async; the block's warps are the slices, or where these are fewer than four also
// neighbouring rows. The slices are added in ascending order at the end.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_SKINNY_CUH_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_SKINNY_CUH_

#include "engine/kernels/cuda/gemm_loader.cuh"
#include "engine/kernels/cuda/gemm_place.cuh"

namespace lockstep::cuda {

inline constexpr int kSkinnyI = 16;             // weight rows of a warp
inline constexpr int kSkinnyBytes = 12 << 10;   // shared memory of a warp: as many stages as fit
inline constexpr int64_t kSkinnySlicesMax = 8;  // warps of a block at most

// kJ: rows of x a block, 8, 16 or 32. slices: CeilDiv(k, p.slice), at least 1; blockDim: whole groups of `slices`
// warps.
template <typename T, int kJ>
__global__ __launch_bounds__(kSkinnySlicesMax* kWarp) void SkinnyKernel(Product p, int slices) {
  using TileA = Tile<kSkinnyI, false, kWarp>;
  using TileB = Tile<kJ, false, kWarp>;
  constexpr int kProducts = kJ / 8, kStages = kSkinnyBytes / (TileA::kBytes + TileB::kBytes);
  static_assert(kStages >= 2);
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = static_cast<int>(warp) / slices, slice = static_cast<int>(warp) % slices;
  const int groups = static_cast<int>(blockDim.x) / kWarp / slices, extent = groups * kSkinnyI;
  __shared__ Place<uint16_t> place;
  if (!SharePlace(p, extent, kJ, place)) return;
  const int begin = slice * static_cast<int>(p.slice), left = place.reduction - begin;
  const int end = left < p.slice ? place.reduction : begin + static_cast<int>(p.slice);
  TileA a(place.a, p.a, lane, place.i + group * kSkinnyI, place.size_i, begin, end);
  TileB b(place.b, p.b, lane, place.j, place.size_j, begin, end);
  unsigned char* shared = DynamicShared() + warp * kSkinnyBytes;
  const int steps = (end - begin + kDepth - 1) / kDepth;
  const auto load = [&](int step) {
    if (step < steps) {
      unsigned char* stage = shared + step % kStages * (TileA::kBytes + TileB::kBytes);
      a.Load(stage);
      b.Load(stage + TileA::kBytes);
    }
    CpAsyncCommit();
  };
  float chain[kProducts][4] = {};
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    CpAsyncWait<kStages - 2>();
    __syncwarp();  // this stage is there for the warp, and the one to be loaded is no longer read
    load(step + kStages - 1);
    const unsigned char* stage = shared + step % kStages * (TileA::kBytes + TileB::kBytes);
#pragma unroll
    for (unsigned k = 0; k < kDepth; k += 16) {
      uint32_t left[4];
      TileA::LoadA(left, stage, 0, k);
#pragma unroll
      for (int j = 0; j < kProducts; ++j) {
        uint32_t right[2];
        TileB::LoadB(right, stage + TileA::kBytes, 8 * j, k);
        Mma16816<T>(chain[j], left, right);
      }
    }
  }

  // sums[slice][j][extent], in the place of the stages.
  __syncthreads();
  float* sums = reinterpret_cast<float*>(DynamicShared());
  const unsigned g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < kProducts; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const unsigned row = slice * kJ + 8 * j + 2 * t + e % 2, column = group * kSkinnyI + g + e / 2 * 8;
      sums[row * extent + column] = chain[j][e];
    }
  }
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x) * kVector; at < kJ * extent;
       at += static_cast<int>(blockDim.x) * kVector) {
    float v[kVector], other[kVector];
    Load(sums + at, kVector, v);
    if (slices > 1) {  // from 0, as in gemm_tile.cuh
#pragma unroll
      for (int e = 0; e < kVector; ++e) v[e] += 0.0f;
    }
    for (int s = 1; s < slices; ++s) {
      Load(sums + s * kJ * extent + at, kVector, other);
#pragma unroll
      for (int e = 0; e < kVector; ++e) v[e] += other[e];
    }
    FinishSums<T>(p, place, place.j + at / extent, place.i + at % extent, v);
  }
}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_SKINNY_CUH_
