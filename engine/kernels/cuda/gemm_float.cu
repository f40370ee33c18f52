// FP32 products: one fma chain over ascending r from 0 for each element, the bits of the CPU's matched operations.
// Steps beyond the end are left out rather than filled with zeros, which would turn a sum of -0 into 0. And column
// sums.
#include "engine/kernels/cuda/gemm_place.cuh"

namespace lockstep::cuda {
namespace {

constexpr int kTile = 64, kPart = 4, kSteps = 16;  // outputs a block each way, a thread each way; r at a time
constexpr int kThreads = kTile / kPart * (kTile / kPart);

// tile[r][i] of an operand; what does not exist stays as it is and is not used.
__device__ inline void LoadFloats(const float* data, const ProductOperand& operand, int64_t first, int64_t extent,
                                  int64_t step, int64_t reduction, float (&tile)[kSteps][kTile + 1]) {
  for (int at = static_cast<int>(threadIdx.x); at < kSteps * kTile; at += kThreads) {
    const int i = operand.by_reduction ? at % kTile : at / kSteps, r = operand.by_reduction ? at / kTile : at % kSteps;
    const int64_t line = operand.by_reduction ? step + r : first + i,
                  element = operand.by_reduction ? first + i : step + r;
    if (first + i < extent && step + r < reduction) tile[r][i] = data[line * operand.stride + element];
  }
}

__global__ __launch_bounds__(kThreads) void FloatKernel(Product p) {
  __shared__ float tile_a[kSteps][kTile + 1], tile_b[kSteps][kTile + 1];
  __shared__ float sums[kTile][kTile + kVector];
  __shared__ Place<float> place;
  if (!SharePlace(p, kTile, kTile, place)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int own_i = thread % (kTile / kPart) * kPart, own_j = thread / (kTile / kPart) * kPart;
  float sum[kPart][kPart] = {};
  for (int64_t step = 0; step < place.reduction; step += kSteps) {
    LoadFloats(place.a, p.a, place.i, place.size_i, step, place.reduction, tile_a);
    LoadFloats(place.b, p.b, place.j, place.size_j, step, place.reduction, tile_b);
    __syncthreads();
    const int count = place.reduction - step < kSteps ? static_cast<int>(place.reduction - step) : kSteps;
#pragma unroll 4
    for (int r = 0; r < count; ++r) {
#pragma unroll
      for (int j = 0; j < kPart; ++j) {
#pragma unroll
        for (int i = 0; i < kPart; ++i) sum[j][i] = fmaf(tile_b[r][own_j + j], tile_a[r][own_i + i], sum[j][i]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < kPart; ++j) {
#pragma unroll
    for (int i = 0; i < kPart; ++i) sums[own_j + j][own_i + i] = sum[j][i];
  }
  __syncthreads();
  for (int at = thread * kVector; at < kTile * kTile; at += kThreads * kVector) {
    float v[kVector];
#pragma unroll
    for (int e = 0; e < kVector; ++e) v[e] = sums[at / kTile][at % kTile + e];
    FinishSums<float>(p, place, place.j + at / kTile, place.i + at % kTile, v);
  }
}

constexpr int kColumns = 32, kRows = 128, kSumThreads = 256;  // of a block

template <typename T>
__global__ __launch_bounds__(kSumThreads) void ColumnSumsKernel(Rows<const T> d_out, int64_t rows, int64_t columns,
                                                                float* sums) {
  __shared__ float tile[kRows][kColumns];
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const int64_t at = int64_t{blockIdx.x} * kColumns + column;
  const bool adds = threadIdx.x < kColumns && at < columns;
  float sum = adds ? sums[at] : 0.0f;
  for (int64_t first = 0; first < rows; first += kRows) {
    const int count = rows - first < kRows ? static_cast<int>(rows - first) : kRows;
    for (int row = static_cast<int>(threadIdx.x) / kColumns; row < count; row += kSumThreads / kColumns) {
      if (at < columns) tile[row][column] = ToFloat(d_out.data[(first + row) * d_out.stride + at]);
    }
    __syncthreads();
    if (adds) {
#pragma unroll 8
      for (int row = 0; row < count; ++row) sum += tile[row][column];
    }
    __syncthreads();
  }
  if (adds) sums[at] = sum;
}

}  // namespace

cudaError_t LaunchFloatProduct(const Product& product, cudaStream_t stream) {
  Product placed = product;
  const int64_t blocks = PlaceBlocks(placed, kTile, kTile);
  return Launch(FloatKernel, blocks, 1, kThreads, stream, placed);
}

cudaError_t LaunchColumnSums(const Tensor& d_out, const Tensor& d_bias, cudaStream_t stream) {
  return WithStorageType(d_out.dtype, [&]<typename T>(T) {
    return Launch(ColumnSumsKernel<T>, CeilDiv(d_out.cols, kColumns), 1, kSumThreads, stream, RowsOf<const T>(d_out),
                  d_out.rows, d_out.cols, d_bias.As<float>());
  });
}

}  // namespace lockstep::cuda
