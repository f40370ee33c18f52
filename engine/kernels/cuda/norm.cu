// RMSNorm with the residual's addition in front, and its backward. A block has one group of a row. The contract allows
// 8 chains a row, so 8 threads sum what all threads have brought to shared memory, tile by tile; many blocks a
// multiprocessor hide the chain. The second pass reads the row again, from the first-level cache.
#include <algorithm>

#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kTile = 2048;
constexpr int kThreads = 128;
// Threads of a block for a group of d elements: a warp where that is a vector a thread.
int64_t ThreadsFor(int64_t d) { return d <= kWarp * kVector ? kWarp : kThreads; }

template <typename T>
struct NormArgs {
  Rows<const T> x, delta;  // delta.data null: none
  const T* weight;
  Rows<T> sum, out;
  float* rstd;
  float eps;
  int64_t d;
  unsigned groups;
};

// v = x + delta of 8 elements at column i, rounded as it is stored.
template <typename T>
__device__ void AddDelta(const NormArgs<T>& a, int64_t row, int64_t column, int64_t count, float (&v)[kVector]) {
  float delta[kVector];
  Load(a.delta.data + row * a.delta.stride + column, count, delta);
#pragma unroll
  for (int i = 0; i < kVector; ++i) v[i] = ToFloat(FromFloat<T>(v[i] + delta[i]));
  Store(a.sum.data + row * a.sum.stride + column, count, v);
}

// A reciprocal root of the mean of squares, to all threads. `lane_sum`: of threads 0 .. 7.
__device__ float RootOfLanes(float lane_sum, int64_t d, float eps, float* shared) {
  if (threadIdx.x < kVirtualLanes) {
    const float squares = SumLanes(lane_sum, LaneGroupMask());
    if (threadIdx.x == 0) *shared = 1.0f / sqrtf(squares / static_cast<float>(d) + eps);
  }
  __syncthreads();
  return *shared;
}

template <typename T>
__global__ void RmsNormKernel(NormArgs<T> a) {
  __shared__ float tile[kTile];
  __shared__ float root;
  AwaitPrevious();
  const int64_t row = blockIdx.x / a.groups, first = blockIdx.x % a.groups * a.d;
  const int64_t step = int64_t{blockDim.x} * kVector, begin = int64_t{threadIdx.x} * kVector;
  const T* x = a.x.data + row * a.x.stride + first;
  float lane_sum = 0;
  for (int64_t base = 0; base < a.d; base += kTile) {
    const int count = a.d - base < kTile ? static_cast<int>(a.d - base) : kTile;
    for (int64_t i = begin; i < count; i += step) {
      float v[kVector];
      Load(x + base + i, count - i, v);
      if (a.delta.data != nullptr) AddDelta(a, row, base + i, count - i, v);
#pragma unroll
      for (int j = 0; j < kVector; ++j) tile[i + j] = v[j];
    }
    __syncthreads();
    if (threadIdx.x < kVirtualLanes) {
#pragma unroll 16
      for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(kVirtualLanes)) {
        lane_sum = fmaf(tile[i], tile[i], lane_sum);
      }
    }
    __syncthreads();
  }
  const float r = RootOfLanes(lane_sum, a.d, a.eps, &root);
  if (threadIdx.x == 0 && a.rstd != nullptr) a.rstd[blockIdx.x] = r;
  const T* from = a.delta.data != nullptr ? a.sum.data + row * a.sum.stride : x;
  T* to = a.out.data + row * a.out.stride + first;
  for (int64_t i = begin; i < a.d; i += step) {
    float v[kVector], w[kVector];
    Load(from + i, a.d - i, v);
    Load(a.weight + i, a.d - i, w);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = v[j] * r * w[j];
    Store(to + i, a.d - i, v);
  }
}

template <typename T>
struct NormBackwardArgs {
  Rows<const T> d_out, x;
  const T* weight;
  const float* rstd;
  Rows<const T> d_residual;  // data null: none
  Rows<T> d_x;
  int64_t d, groups;
};

// d_x_i = r (w_i dy_i - x_i c),  c = r^2 / d * sum_j w_j dy_j x_j.
template <typename T>
__global__ void RmsNormBackwardKernel(NormBackwardArgs<T> a) {
  __shared__ float weighted[kTile], values[kTile];
  __shared__ float shared_c;
  const int64_t row = blockIdx.x / a.groups, first = blockIdx.x % a.groups * a.d;
  const int64_t step = int64_t{blockDim.x} * kVector, begin = int64_t{threadIdx.x} * kVector;
  const T* x = a.x.data + row * a.x.stride + first;
  const T* d_out = a.d_out.data + row * a.d_out.stride + first;
  const float r = a.rstd[blockIdx.x];
  float v[kVector], g[kVector], w[kVector];
  float lane_sum = 0;
  for (int64_t base = 0; base < a.d; base += kTile) {
    const int count = a.d - base < kTile ? static_cast<int>(a.d - base) : kTile;
    for (int64_t i = begin; i < count; i += step) {
      Load(x + base + i, count - i, v);
      Load(d_out + base + i, count - i, g);
      Load(a.weight + base + i, count - i, w);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        weighted[i + j] = w[j] * g[j];
        values[i + j] = v[j];
      }
    }
    __syncthreads();
    if (threadIdx.x < kVirtualLanes) {
#pragma unroll 16
      for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(kVirtualLanes)) {
        lane_sum = fmaf(weighted[i], values[i], lane_sum);
      }
    }
    __syncthreads();
  }
  if (threadIdx.x < kVirtualLanes) {
    const float dot = SumLanes(lane_sum, LaneGroupMask());
    if (threadIdx.x == 0) shared_c = dot * r * r / static_cast<float>(a.d);
  }
  __syncthreads();
  const float c = shared_c;
  for (int64_t i = begin; i < a.d; i += step) {
    const int64_t count = a.d - i;
    Load(x + i, count, v);
    Load(d_out + i, count, g);
    Load(a.weight + i, count, w);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = r * fmaf(-v[j], c, w[j] * g[j]);
    if (a.d_residual.data != nullptr) {
      Load(a.d_residual.data + row * a.d_residual.stride + first + i, count, g);
#pragma unroll
      for (int j = 0; j < kVector; ++j) v[j] += g[j];
    }
    Store(a.d_x.data + row * a.d_x.stride + first + i, count, v);
  }
}

// partial[slice][column]: a thread owns one column of a slice of the rows.
template <typename T>
__global__ void WeightPartialKernel(NormBackwardArgs<T> a, int64_t rows, int64_t slices, float* partial) {
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, slice = blockIdx.y;
  if (column >= a.d) return;
  float sum = 0;
  for (int64_t t = rows * slice / slices; t < rows * (slice + 1) / slices; ++t) {
    for (int64_t group = 0; group < a.groups; ++group) {
      const int64_t at = group * a.d + column;
      const float g = ToFloat(a.d_out.data[t * a.d_out.stride + at]), v = ToFloat(a.x.data[t * a.x.stride + at]);
      sum = fmaf(g * v, a.rstd[t * a.groups + group], sum);
    }
  }
  partial[slice * a.d + column] = sum;
}

__global__ void WeightTotalKernel(const float* partial, int64_t slices, int64_t d, float* total) {
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= d) return;
  float sum = total[column];
  for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * d + column];
  total[column] = sum;
}

int64_t SlicesOf(int64_t rows) { return std::min(kNormSlices, std::max<int64_t>(rows, 1)); }

}  // namespace

cudaError_t RmsNorm(const Tensor& x, const Tensor& delta, const Tensor& weight, float eps, const Tensor& sum,
                    const Tensor& out, float* rstd, cudaStream_t stream) {
  LOCKSTEP_CHECK(weight.cols > 0 && x.cols % weight.cols == 0, "rows of an RMSNorm are whole groups");
  LOCKSTEP_CHECK(out.rows == x.rows && out.cols == x.cols, "an RMSNorm keeps the shape");
  LOCKSTEP_CHECK(weight.dtype == x.dtype && out.dtype == x.dtype, "an RMSNorm has one dtype");
  LOCKSTEP_CHECK((delta.data == nullptr) == (sum.data == nullptr), "a sum is stored exactly where there is an addend");
  if (delta.data != nullptr) {
    LOCKSTEP_CHECK(x.cols == weight.cols, "the residual is added in front of a norm of whole rows");
    LOCKSTEP_CHECK(delta.dtype == x.dtype && delta.rows == x.rows && delta.cols == x.cols, "the addend has x's shape");
    LOCKSTEP_CHECK(sum.dtype == x.dtype && sum.rows == x.rows && sum.cols == x.cols, "the sum has x's shape");
    LOCKSTEP_CHECK(out.data != sum.data, "the sum is read again for the output");
  }
  const int64_t d = weight.cols, groups = x.cols / d;
  return WithStorageType(x.dtype, [&]<typename T>(T) {
    const NormArgs<T> args = {RowsOf<const T>(x),
                              RowsOf<const T>(delta),
                              weight.As<T>(),
                              RowsOf<T>(sum),
                              RowsOf<T>(out),
                              rstd,
                              eps,
                              d,
                              static_cast<unsigned>(groups)};
    return LaunchBehind(RmsNormKernel<T>, x.rows * groups, 1, ThreadsFor(d), 0, stream, args);
  });
}

int64_t RmsNormBackwardScratch(int64_t rows, int64_t weight_cols) { return SlicesOf(rows) * weight_cols; }

cudaError_t RmsNormBackward(const Tensor& d_out, const Tensor& x, const Tensor& weight, const float* rstd,
                            const Tensor& d_residual, const Tensor& d_x, const Tensor& d_weight, float* scratch,
                            cudaStream_t stream) {
  LOCKSTEP_CHECK(weight.cols > 0 && x.cols % weight.cols == 0, "rows of an RMSNorm are whole groups");
  LOCKSTEP_CHECK(d_out.rows == x.rows && d_out.cols == x.cols && d_x.rows == x.rows && d_x.cols == x.cols,
                 "the gradients of an RMSNorm have x's shape");
  LOCKSTEP_CHECK(weight.dtype == x.dtype && d_out.dtype == x.dtype && d_x.dtype == x.dtype, "an RMSNorm has one dtype");
  LOCKSTEP_CHECK(d_residual.data == nullptr || (d_residual.dtype == x.dtype && d_residual.cols == x.cols),
                 "the residual's gradient has x's shape");
  const int64_t d = weight.cols, groups = x.cols / d;
  return WithStorageType(x.dtype, [&]<typename T>(T) {
    const NormBackwardArgs<T> args = {RowsOf<const T>(d_out),
                                      RowsOf<const T>(x),
                                      weight.As<T>(),
                                      rstd,
                                      RowsOf<const T>(d_residual),
                                      RowsOf<T>(d_x),
                                      d,
                                      groups};
    if (d_weight.data != nullptr) {  // first: d_x may take d_out's place
      LOCKSTEP_CHECK(d_weight.dtype == DType::kF32 && d_weight.cols == d && scratch != nullptr,
                     "the weight's gradient is FP32 [1, D] and takes scratch");
      const int64_t slices = SlicesOf(x.rows), blocks = CeilDiv(d, kThreads);
      cudaError_t error =
          Launch(WeightPartialKernel<T>, blocks, slices, kThreads, stream, args, x.rows, slices, scratch);
      if (error != cudaSuccess) return error;
      error = Launch(WeightTotalKernel, blocks, 1, kThreads, stream, scratch, slices, d, d_weight.As<float>());
      if (error != cudaSuccess) return error;
    }
    return Launch(RmsNormBackwardKernel<T>, x.rows * groups, 1, ThreadsFor(d), stream, args);
  });
}

}  // namespace lockstep::cuda
