// Linear for few rows: weights are read once and nothing waits for anybody. A warp has 16 or 32 weight rows (i) and one
// or two neighbouring slices of k, with its own stages of cp.async; the block's warps are the slices, or where these
// are fewer than four warps also neighbouring rows. The slices are added in ascending order at the end.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_SKINNY_CUH_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_SKINNY_CUH_

#include "engine/kernels/cuda/gemm_loader.cuh"
#include "engine/kernels/cuda/gemm_place.cuh"

namespace lockstep::cuda {

inline constexpr int kSkinnyBytes = 96 << 10;  // shared memory of a block: as many stages as fit
inline constexpr int kSkinnyPrefetch = 4;      // steps of a warp's weights that are asked for before its turn
inline constexpr int64_t kSkinnySlicesMax = 8;

// kWeights: rows of w a warp; kRows: rows of x a block, 8, 16 or 32; kSlices: of a warp, at most.
template <int kWeights, int kRows, int kSlices>
struct SkinnyShape {
  static constexpr int kI = kWeights, kJ = kRows, kShare = kSlices;
  static constexpr int kWarpsMax = static_cast<int>(kSkinnySlicesMax) / kShare;  // of a block
  static constexpr int kWarpBytes = kSkinnyBytes / kWarpsMax;
};
// Blocks of few rows of x have all slices side by side. With many, x is most of what a warp reads, so it goes to twice
// the weight rows, and two slices share the memory that the stages of both need.
using SkinnyFew = SkinnyShape<16, 8, 1>;
using SkinnySome = SkinnyShape<16, 16, 1>;
using SkinnyMany = SkinnyShape<32, 32, 2>;

// slices: CeilDiv(k, p.slice), at least 1; blockDim: whole groups of CeilDiv(slices, kShare) warps.
template <typename T, typename Shape>
__global__ __launch_bounds__(Shape::kWarpsMax* kWarp) void SkinnyKernel(Product p, int slices) {
  constexpr int kI = Shape::kI, kJ = Shape::kJ, kShare = Shape::kShare;
  using TileA = Tile<kI, false, kWarp>;
  using TileB = Tile<kJ, false, kWarp>;
  constexpr int kStageBytes = TileA::kBytes + TileB::kBytes, kStages = Shape::kWarpBytes / kStageBytes;
  constexpr int kProductsI = kI / 16, kProductsJ = kJ / 8;
  static_assert(kStages >= 3);
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int ways = (slices + kShare - 1) / kShare;  // warps that share a group's k
  const int group = static_cast<int>(warp) / ways, way = static_cast<int>(warp) % ways;
  const int groups = static_cast<int>(blockDim.x) / kWarp / ways, extent = groups * kI;
  __shared__ Place<uint16_t> place;
  if (p.cut != ExpertCut::kNone) AwaitPrevious();  // the experts' offsets
  if (!SharePlace(p, extent, kJ, place)) return;
  const int slice = static_cast<int>(p.slice), begin = way * kShare * slice, left = place.reduction - begin;
  const int end = left < int64_t{kShare} * slice ? place.reduction : begin + kShare * slice;
  TileA a(place.a, p.a, lane, place.i + group * kI, place.size_i, begin, end);
  TileB b(place.b, p.b, lane, place.j, place.size_j, begin, end);
  if (p.cut == ExpertCut::kNone) {  // the kernels before this one leave the memory's bus time for weights
    a.PrefetchSteps(kSkinnyPrefetch, end - begin);
    AwaitPrevious();
  }
  unsigned char* shared = DynamicShared() + warp * Shape::kWarpBytes;
  const int steps = (end - begin + kDepth - 1) / kDepth;
  const auto load = [&](int step) {
    if (step < steps) {
      unsigned char* stage = shared + step % kStages * kStageBytes;
      a.Load(stage, p.a.data);
      b.Load(stage + TileA::kBytes, p.b.data);
    }
    CpAsyncCommit();
  };
  float chains[kShare][kProductsI][kProductsJ][4] = {};  // the last is the one that goes on
  auto& chain = chains[kShare - 1];
  bool second = false;
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    CpAsyncWait<kStages - 2>();
    __syncwarp();  // this stage is there for the warp, and the one to be loaded is no longer read
    load(step + kStages - 1);
    if constexpr (kShare == 2) {
      if (step * kDepth == slice) {  // the second slice begins
        second = true;
#pragma unroll
        for (int i = 0; i < kProductsI; ++i) {
#pragma unroll
          for (int j = 0; j < kProductsJ; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              chains[0][i][j][e] = chain[i][j][e];
              chain[i][j][e] = 0;
            }
          }
        }
      }
    }
    const unsigned char* stage = shared + step % kStages * kStageBytes;
#pragma unroll
    for (unsigned k = 0; k < kDepth; k += 16) {
      uint32_t weights[kProductsI][4];
#pragma unroll
      for (int i = 0; i < kProductsI; ++i) TileA::LoadA(weights[i], stage, 16 * i, k);
#pragma unroll
      for (int j = 0; j < kProductsJ; ++j) {
        uint32_t right[2];
        TileB::LoadB(right, stage + TileA::kBytes, 8 * j, k);
#pragma unroll
        for (int i = 0; i < kProductsI; ++i) Mma16816<T>(chain[i][j], weights[i], right);
      }
    }
  }

  // sums[slice][j][extent], in the place of the stages.
  __syncthreads();
  float* sums = reinterpret_cast<float*>(DynamicShared());
  const unsigned g = lane / 4, t = lane % 4;
#pragma unroll
  for (int s = 0; s < kShare; ++s) {
    const auto& ended = chains[s];
    const int at = way * kShare + (second || kShare == 1 ? s : s - (kShare - 1));  // of one slice, the last chain
    if (at < way * kShare || at >= slices) continue;
#pragma unroll
    for (int i = 0; i < kProductsI; ++i) {
#pragma unroll
      for (int j = 0; j < kProductsJ; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const unsigned row = at * kJ + 8 * j + 2 * t + e % 2, column = group * kI + 16 * i + g + e / 2 * 8;
          sums[row * extent + column] = ended[i][j][e];
        }
      }
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
