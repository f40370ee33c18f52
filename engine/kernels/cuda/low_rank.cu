// Gradients of low-rank updates. Two kinds of products with a small side r: rows of activations with the rows of an
// adapter (8 threads a row, a patch of rows and ranks in registers), and activations summed over the tokens (a thread
// has a column; its chain runs over all tokens).
#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/cuda/low_rank.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPatchRows = 4, kPatchRanks = 8;  // of RowProducts
constexpr int kGroups = kThreads / static_cast<int>(kVirtualLanes);
constexpr int kSumRanks = 4;  // of OuterSums

// Element (j, c) of an adapter, j below r: data[j rank_stride + c column_stride].
template <typename T>
struct Adapter {
  T* data;
  int64_t rank_stride, column_stride;
};

template <typename T>
struct ProductArgs {
  Rows<const T> x;
  int64_t rows, cols;
  Adapter<const float> m;
  int64_t r;
  float* out;
};

// out[t][j] = sum over c of x[t, c] m(j, c): 8 lanes over c, then the lane tree. Lanes behind the end add 0, as on the
// CPU; rows and ranks behind theirs are computed and dropped.
template <typename T>
__global__ void RowProductsKernel(ProductArgs<T> a) {
  const int64_t lane = threadIdx.x % kVirtualLanes;
  const int64_t t = (int64_t{blockIdx.x} * kGroups + threadIdx.x / kVirtualLanes) * kPatchRows;
  const int64_t j = int64_t{blockIdx.y} * kPatchRanks;
  if (t >= a.rows) return;  // all eight
  float sums[kPatchRows][kPatchRanks] = {};
  for (int64_t c = lane; c - lane < a.cols; c += kVirtualLanes) {
    float factors[kPatchRanks];
#pragma unroll
    for (int k = 0; k < kPatchRanks; ++k) {
      const bool inside = c < a.cols && j + k < a.r;
      factors[k] = inside ? a.m.data[(j + k) * a.m.rank_stride + c * a.m.column_stride] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kPatchRows; ++i) {
      const bool inside = c < a.cols && t + i < a.rows;
      const float value = inside ? ToFloat(a.x.data[(t + i) * a.x.stride + c]) : 0.0f;
#pragma unroll
      for (int k = 0; k < kPatchRanks; ++k) sums[i][k] = fmaf(value, factors[k], sums[i][k]);
    }
  }
  const unsigned mask = LaneGroupMask();
#pragma unroll
  for (int i = 0; i < kPatchRows; ++i) {
#pragma unroll
    for (int k = 0; k < kPatchRanks; ++k) {
      const float sum = SumLanes(sums[i][k], mask);
      if (lane == k % kVirtualLanes && t + i < a.rows && j + k < a.r) a.out[(t + i) * a.r + j + k] = sum;
    }
  }
}

template <typename T>
struct OuterArgs {
  const float* p;
  Rows<const T> x;
  int64_t rows, cols, r;
  float scale;
  Adapter<float> gradient;
};

// gradient(j, c) += scale * sum over t of p[t][j] x[t, c]: one fma chain in ascending t.
template <typename T>
__global__ void OuterSumsKernel(OuterArgs<T> a) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, j = int64_t{blockIdx.y} * kSumRanks;
  if (c >= a.cols) return;
  float sums[kSumRanks] = {};
#pragma unroll 4
  for (int64_t t = 0; t < a.rows; ++t) {
    const float value = ToFloat(a.x.data[t * a.x.stride + c]);
#pragma unroll
    for (int k = 0; k < kSumRanks; ++k) {
      if (j + k < a.r) sums[k] = fmaf(a.p[t * a.r + j + k], value, sums[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kSumRanks; ++k) {
    if (j + k < a.r) {
      float& to = a.gradient.data[(j + k) * a.gradient.rank_stride + c * a.gradient.column_stride];
      to = to + a.scale * sums[k];
    }
  }
}

template <typename T>
cudaError_t RowProducts(const Tensor& x, const Adapter<const float>& m, int64_t r, float* out, cudaStream_t stream) {
  const ProductArgs<T> args = {RowsOf<const T>(x), x.rows, x.cols, m, r, out};
  return Launch(RowProductsKernel<T>, CeilDiv(x.rows, kGroups * kPatchRows), CeilDiv(r, kPatchRanks), kThreads, stream,
                args);
}

template <typename T>
cudaError_t OuterSums(const float* p, const Tensor& x, int64_t r, float scale, const Adapter<float>& gradient,
                      cudaStream_t stream) {
  const OuterArgs<T> args = {p, RowsOf<const T>(x), x.rows, x.cols, r, scale, gradient};
  return Launch(OuterSumsKernel<T>, CeilDiv(x.cols, kThreads), CeilDiv(r, kSumRanks), kThreads, stream, args);
}

void CheckAdapter(const Tensor& tensor, int64_t rows, int64_t cols) {
  LOCKSTEP_CHECK(tensor.dtype == DType::kF32 && tensor.rows == rows && tensor.cols == cols && tensor.stride == cols,
                 "adapters and their gradients are dense FP32, A [r, k] and B [n, r]");
}

}  // namespace

int64_t LowRankScratch(int64_t tokens, int64_t rank) { return 2 * tokens * rank; }

cudaError_t LowRankBackward(const Tensor& d_out, const Tensor& x, const Tensor& a, const Tensor& b, float scale,
                            const Tensor& d_a, const Tensor& d_b, float* scratch, cudaStream_t stream) {
  const int64_t r = a.rows, n = d_out.cols, k = x.cols;
  LOCKSTEP_CHECK(d_out.rows == x.rows && d_out.dtype == x.dtype, "input and output gradient have one batch and dtype");
  CheckAdapter(a, r, k);
  CheckAdapter(d_a, r, k);
  CheckAdapter(b, n, r);
  CheckAdapter(d_b, n, r);
  float *down = scratch, *up = scratch + x.rows * r;  // x A^T and d_out B, [T][r]
  return WithStorageType(x.dtype, [&]<typename T>(T) {
    cudaError_t error = RowProducts<T>(x, {a.As<float>(), k, 1}, r, down, stream);
    if (error == cudaSuccess) error = RowProducts<T>(d_out, {b.As<float>(), 1, r}, r, up, stream);
    if (error == cudaSuccess) error = OuterSums<T>(up, x, r, scale, {d_a.As<float>(), k, 1}, stream);
    if (error == cudaSuccess) error = OuterSums<T>(down, d_out, r, scale, {d_b.As<float>(), 1, r}, stream);
    return error;
  });
}

}  // namespace lockstep::cuda
