// What the kernels are made of: conversion, 16-byte loads and stores of 8 elements, the reductions of the matched
// contract (engine/kernels/contract.h) and the shared polynomials in one scalar lane. Multiply-adds are written out
// (fmaf); the files are compiled with -fmad=false, so that the compiler adds none. Division and sqrt are the IEEE ones
// (nvcc's default).
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_BRICKS_CUH_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_BRICKS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <launch_order.h>

#include <bit>
#include <cstdint>

#include "engine/kernels/contract.h"
#include "engine/kernels/polynomials.h"

namespace lockstep::cuda {

// Elements that a thread handles at a time: 16 bytes of FP16 or BF16, 32 of FP32.
inline constexpr int kVector = 8;
inline constexpr int kWarp = 32;
inline constexpr unsigned kFullWarp = 0xFFFFFFFFu;

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(__half x) { return __half2float(x); }
__device__ inline float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

// Rounds to nearest even.
template <typename T>
__device__ T FromFloat(float x);
template <>
__device__ inline float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ inline __half FromFloat<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 FromFloat<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

template <typename T>
struct alignas(16) Pack {
  T at[kVector];
};

__device__ inline bool Aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

// The first min(count, 8) elements at p as FP32, the others 0. One or two 16-byte loads where all 8 are there and p
// is aligned.
template <typename T>
__device__ inline void Load(const T* p, int64_t count, float (&v)[kVector]) {
  if (count >= kVector && Aligned16(p)) {
    const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(p);
#pragma unroll
    for (int i = 0; i < kVector; ++i) v[i] = ToFloat(pack.at[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) v[i] = i < count ? ToFloat(p[i]) : 0.0f;
  }
}

// Stores the first min(count, 8) values, rounded.
template <typename T>
__device__ inline void Store(T* p, int64_t count, const float (&v)[kVector]) {
  if (count >= kVector && Aligned16(p)) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kVector; ++i) pack.at[i] = FromFloat<T>(v[i]);
    *reinterpret_cast<Pack<T>*>(p) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < count) p[i] = FromFloat<T>(v[i]);
    }
  }
}

// One scalar as the lanes of engine/kernels/polynomials.h. __host__ too, as constexpr functions are.
struct ScalarLane {
  using Float = float;
  using Mask = bool;
  __host__ __device__ static float Set(float c) { return c; }
  __host__ __device__ static float Add(float a, float b) { return a + b; }
  __host__ __device__ static float Sub(float a, float b) { return a - b; }
  __host__ __device__ static float Mul(float a, float b) { return a * b; }
  __host__ __device__ static float Fma(float a, float b, float c) { return fmaf(a, b, c); }
  __host__ __device__ static float NegFma(float a, float b, float c) { return fmaf(-a, b, c); }
  __host__ __device__ static float Min(float a, float b) { return a < b ? a : b; }
  __host__ __device__ static float Max(float a, float b) { return a > b ? a : b; }
  __host__ __device__ static float Round(float x) { return rintf(x); }
  __host__ __device__ static float HalfDown(float n) { return floorf(n * 0.5f); }
  __host__ __device__ static float PowerOfTwo(float n) {
    return std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  }
  __host__ __device__ static float Exponent(float x) {
    return static_cast<float>(static_cast<int32_t>(std::bit_cast<uint32_t>(x) >> 23) - 126);
  }
  __host__ __device__ static float Mantissa(float x) {
    return std::bit_cast<float>((std::bit_cast<uint32_t>(x) & 0x007FFFFFu) | 0x3F000000u);
  }
  __host__ __device__ static bool Less(float a, float b) { return a < b; }
  __host__ __device__ static bool Greater(float a, float b) { return a > b; }
  __host__ __device__ static bool Equal(float a, float b) { return a == b; }
  __host__ __device__ static bool NotGreaterEqual(float a, float b) { return !(a >= b); }
  __host__ __device__ static bool Unordered(float x) { return x != x; }
  __host__ __device__ static float Keep(bool mask, float v) { return mask ? v : 0.0f; }
  __host__ __device__ static float Drop(bool mask, float v) { return mask ? 0.0f : v; }
  __host__ __device__ static float Select(bool mask, float a, float b) { return mask ? a : b; }
};

__device__ inline float Exp(float x) { return PolynomialExp<ScalarLane>(x); }

// The largest value of a block of kThreads, to all of them; `shared` has one element a warp.
template <int kThreads>
__device__ float BlockMax(float value, float* shared) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value = ScalarLane::Max(value, __shfl_xor_sync(kFullWarp, value, step));
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  float max = shared[0];
#pragma unroll
  for (int w = 1; w < kThreads / kWarp; ++w) max = ScalarLane::Max(shared[w], max);
  return max;
}
__device__ inline float Log(float x) { return PolynomialLog<ScalarLane>(x); }

// Eight consecutive threads of a warp hold a row's eight lanes. mask: these eight threads.
__device__ inline unsigned LaneGroupMask() { return 0xFFu << (threadIdx.x % kWarp / kVirtualLanes * kVirtualLanes); }

// The fixed tree over the 8 lanes, to all eight threads: ((0+4)+(2+6)) + ((1+5)+(3+7)).
__device__ inline float SumLanes(float lane, unsigned mask) {
  lane += __shfl_xor_sync(mask, lane, 4);
  lane += __shfl_xor_sync(mask, lane, 2);
  return lane + __shfl_xor_sync(mask, lane, 1);
}

__device__ inline float MaxLanes(float lane, unsigned mask) {
#pragma unroll
  for (int step = 4; step > 0; step /= 2) lane = ScalarLane::Max(lane, __shfl_xor_sync(mask, lane, step));
  return lane;
}

// Sum over the block, to all threads, in one order: xor tree in a warp, then the warps ascending. `shared` has one
// element a warp and is free again when the call returns. For integers, and for FP64 masses whose order no contract
// fixes.
template <typename T>
__device__ T BlockSum(T value, T* shared) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < warps; ++w) sum += shared[w];
  __syncthreads();
  return sum;
}

// How many threads before this one have `flag`; `total` gets those of the block. `shared` as above.
__device__ inline int BlockRank(bool flag, int* shared, int& total) {
  const unsigned votes = __ballot_sync(kFullWarp, flag);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  if (lane == 0) shared[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1));
  total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) {
    if (w < warp) before += shared[w];
    total += shared[w];
  }
  __syncthreads();
  return before;
}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_BRICKS_CUH_
