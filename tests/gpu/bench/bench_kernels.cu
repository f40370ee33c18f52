#include "engine/base/philox.h"
#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/launch.h"
#include "tests/gpu/bench/bench_kernels.h"

namespace lockstep::cuda {
namespace {

constexpr int64_t kFillThreads = 256;
constexpr int64_t kFillVectors = 64;  // that a block fills of one row

template <typename T>
__global__ void FillKernel(Rows<T> out, int64_t cols, uint64_t seed, float center, float spread) {
  const int64_t row = blockIdx.x;
  T* const to = out.data + row * out.stride;
  const int64_t begin = int64_t{blockIdx.y} * kFillThreads * kFillVectors * kVector;
  for (int64_t vector = threadIdx.x; vector < kFillThreads * kFillVectors; vector += kFillThreads) {
    const int64_t i = begin + vector * kVector;
    if (i >= cols) return;
    float v[kVector];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto words = Philox4x32(seed, static_cast<uint64_t>(2 * (i / kVector) + half), static_cast<uint64_t>(row));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        v[half * 4 + j] = fmaf(spread, fmaf(2.0f, UniformOpen(words[static_cast<size_t>(j)]), -1.0f), center);
      }
    }
    Store(to + i, cols - i, v);
  }
}

__global__ void ReadKernel(const float* data, int64_t vectors, float* found) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x, thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  float sum = 0;
#pragma unroll 4
  for (int64_t i = thread; i < vectors; i += step) {
    float v[kVector];
    Load(data + i * kVector, kVector, v);
    sum += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
  }
  found[thread] = sum;
}

}  // namespace

cudaError_t FillUniform(const Tensor& out, uint64_t seed, float center, float spread, cudaStream_t stream) {
  const int64_t blocks = CeilDiv(out.cols, kFillThreads * kFillVectors * kVector);
  return WithStorageType(out.dtype, [&]<typename T>(T) {
    return Launch(FillKernel<T>, out.rows, blocks, kFillThreads, stream, RowsOf<T>(out), out.cols, seed, center,
                  spread);
  });
}

cudaError_t ReadAll(const void* data, int64_t bytes, int64_t blocks, float* found, cudaStream_t stream) {
  constexpr int64_t kVectorBytes = kVector * static_cast<int64_t>(sizeof(float));
  LOCKSTEP_CHECK(bytes % kVectorBytes == 0, "whole vectors are read");
  return Launch(ReadKernel, blocks, 1, kReadThreads, stream, static_cast<const float*>(data), bytes / kVectorBytes,
                found);
}

}  // namespace lockstep::cuda
