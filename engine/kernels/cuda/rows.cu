#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/cuda/rows.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T>
__global__ void ScatterRowsKernel(Rows<const T> x, const int32_t* rows, Rows<T> out, int64_t cols) {
  const int64_t row = blockIdx.x;
  const T* from = x.data + row * x.stride;
  T* to = out.data + rows[row] * out.stride;
  for (int64_t i = int64_t{threadIdx.x} * kVector; i < cols; i += int64_t{blockDim.x} * kVector) {
    float v[kVector];
    Load(from + i, cols - i, v);
    Store(to + i, cols - i, v);
  }
}

template <typename From, typename To>
__global__ void ConvertKernel(const From* x, int64_t n, To* out) {
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kVector;
  if (i >= n) return;
  float v[kVector];
  Load(x + i, n - i, v);
  Store(out + i, n - i, v);
}

}  // namespace

cudaError_t ScatterRows(const Tensor& x, const int32_t* rows, const Tensor& out, cudaStream_t stream) {
  LOCKSTEP_CHECK(x.dtype == out.dtype && x.cols == out.cols, "scattered rows keep dtype and width");
  return WithStorageType(x.dtype, [&]<typename T>(T) {
    return Launch(ScatterRowsKernel<T>, x.rows, 1, kThreads, stream, RowsOf<const T>(x), rows, RowsOf<T>(out), x.cols);
  });
}

cudaError_t Convert(const void* x, DType from, int64_t n, DType to, void* out, cudaStream_t stream) {
  return WithStorageType(from, [&]<typename From>(From) {
    return WithStorageType(to, [&]<typename To>(To) {
      return Launch(ConvertKernel<From, To>, CeilDiv(n, kThreads * kVector), 1, kThreads, stream,
                    static_cast<const From*>(x), n, static_cast<To*>(out));
    });
  });
}

cudaError_t Convert(const float* x, int64_t n, DType dtype, void* out, cudaStream_t stream) {
  return Convert(x, DType::kF32, n, dtype, out, stream);
}

}  // namespace lockstep::cuda
