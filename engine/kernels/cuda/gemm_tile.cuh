// A block computes kI x kJ outputs: kStages tiles of both operands on their way by cp.async, warps of kWarpI x kWarpJ
// outputs by ldmatrix and mma.sync. All three products, dense or for experts.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_TILE_CUH_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_TILE_CUH_

#include "engine/kernels/cuda/gemm_loader.cuh"
#include "engine/kernels/cuda/gemm_place.cuh"

namespace lockstep::cuda {

// kResident: how many blocks are to fit a multiprocessor's registers at a time.
template <int kI, int kJ, int kWarpI, int kWarpJ, int kResident>
struct TileShape {
  static constexpr int kExtentI = kI, kExtentJ = kJ, kSpanI = kWarpI, kSpanJ = kWarpJ, kBlocks = kResident;
  static constexpr int kThreads = kI / kWarpI * (kJ / kWarpJ) * kWarp;
  static constexpr int kStages = 3;
  static constexpr int kStageBytes = (kI + kJ) * kDepth * 2;
  static constexpr int kSumStride = kI + 4;  // of a row j of the sums in shared memory: no bank conflicts
  static constexpr int kShared = kStages * kStageBytes;
  static_assert(kShared >= kJ * kSumStride * 4);
};

// Sums of one warp: of its 16 x 8 products (row i, column j of the tensor core).
template <typename Shape>
struct WarpSums {
  static constexpr int kProductsI = Shape::kSpanI / 16, kProductsJ = Shape::kSpanJ / 8;
  float at[kProductsI][kProductsJ][4];

  __device__ void Clear() {
#pragma unroll
    for (int i = 0; i < kProductsI; ++i) {
#pragma unroll
      for (int j = 0; j < kProductsJ; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) at[i][j][e] = 0;
      }
    }
  }
  __device__ void Add(const WarpSums& other) {
#pragma unroll
    for (int i = 0; i < kProductsI; ++i) {
#pragma unroll
      for (int j = 0; j < kProductsJ; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) at[i][j][e] += other.at[i][j][e];
      }
    }
  }
};

// kSliced: the reduction may have more than one slice.
template <typename T, typename Shape, bool kAByReduction, bool kBByReduction, bool kSliced>
__global__ __launch_bounds__(Shape::kThreads, Shape::kBlocks) void TileKernel(Product p) {
  using TileA = Tile<Shape::kExtentI, kAByReduction, Shape::kThreads>;
  using TileB = Tile<Shape::kExtentJ, kBByReduction, Shape::kThreads>;
  using Sums = WarpSums<Shape>;
  __shared__ Place<uint16_t> place;
  AwaitPrevious();
  if (!SharePlace(p, Shape::kExtentI, Shape::kExtentJ, place)) return;
  unsigned char* shared = DynamicShared();
  TileA a(place.a, p.a, threadIdx.x, place.i, place.size_i, 0, place.reduction);
  TileB b(place.b, p.b, threadIdx.x, place.j, place.size_j, 0, place.reduction);
  const unsigned warp = threadIdx.x / kWarp;
  const unsigned warp_i = warp % (Shape::kExtentI / Shape::kSpanI) * Shape::kSpanI;
  const unsigned warp_j = warp / (Shape::kExtentI / Shape::kSpanI) * Shape::kSpanJ;
  const int steps = (place.reduction + kDepth - 1) / kDepth, slice = static_cast<int>(p.slice / kDepth);
  const auto load = [&](int step) {
    if (step < steps) {
      unsigned char* stage = shared + step % Shape::kStages * Shape::kStageBytes;
      a.Load(stage, p.a.data);
      b.Load(stage + TileA::kBytes, p.b.data);
    }
    CpAsyncCommit();
  };
  Sums chain, total;  // total: with slices
  chain.Clear();
  total.Clear();
  for (int step = 0; step < Shape::kStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    CpAsyncWait<Shape::kStages - 2>();
    __syncthreads();  // this stage is there for all, and the one to be loaded is no longer read
    load(step + Shape::kStages - 1);
    const unsigned char* stage = shared + step % Shape::kStages * Shape::kStageBytes;
#pragma unroll
    for (unsigned k = 0; k < kDepth; k += 16) {
      uint32_t left[Sums::kProductsI][4], right[Sums::kProductsJ / 2][4];
#pragma unroll
      for (int i = 0; i < Sums::kProductsI; ++i) TileA::LoadA(left[i], stage, warp_i + 16 * i, k);
#pragma unroll
      for (int j = 0; j < Sums::kProductsJ / 2; ++j) TileB::LoadB(right[j], stage + TileA::kBytes, warp_j + 16 * j, k);
#pragma unroll
      for (int i = 0; i < Sums::kProductsI; ++i) {
#pragma unroll
        for (int j = 0; j < Sums::kProductsJ; ++j) {
          const uint32_t column[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
          Mma16816<T>(chain.at[i][j], left[i], column);
        }
      }
    }
    if constexpr (kSliced) {
      if ((step + 1) % slice == 0 || step + 1 == steps) {
        total.Add(chain);
        chain.Clear();
      }
    }
  }
  const Sums& result = kSliced ? total : chain;

  // By rows j through shared memory, so that eight consecutive outputs are stored at a time.
  __syncthreads();
  float* sums = reinterpret_cast<float*>(shared);
  const unsigned lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < Sums::kProductsI; ++i) {
#pragma unroll
    for (int j = 0; j < Sums::kProductsJ; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const unsigned row = warp_j + 8 * j + 2 * t + e % 2, column = warp_i + 16 * i + g + e / 2 * 8;
        sums[row * Shape::kSumStride + column] = result.at[i][j][e];
      }
    }
  }
  __syncthreads();
  for (unsigned at = threadIdx.x; at < Shape::kExtentJ * Shape::kExtentI / kVector; at += Shape::kThreads) {
    const unsigned row = at / (Shape::kExtentI / kVector), column = at % (Shape::kExtentI / kVector) * kVector;
    float v[kVector];
    Load(sums + row * Shape::kSumStride + column, kVector, v);
    FinishSums<T>(p, place, place.j + static_cast<int>(row), place.i + static_cast<int>(column), v);
  }
}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_GEMM_TILE_CUH_
