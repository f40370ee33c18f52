// Rows of the embedding table, and their gradient without atomics: the host sorts the tokens by id (a plan), a block
// sums one id's tokens in ascending order.
#include <algorithm>
#include <numeric>

#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T>
__global__ void EmbeddingKernel(const int32_t* ids, Rows<const T> table, Rows<T> out, int64_t cols) {
  const int64_t t = blockIdx.x;
  const T* from = table.data + ids[t] * table.stride;
  T* to = out.data + t * out.stride;
  for (int64_t i = int64_t{threadIdx.x} * kVector; i < cols; i += int64_t{blockDim.x} * kVector) {
    float v[kVector];
    Load(from + i, cols - i, v);
    Store(to + i, cols - i, v);
  }
}

// Block (run, part of the columns); a thread owns one column.
template <typename T>
__global__ void EmbeddingBackwardKernel(const int32_t* ids, const int32_t* order, const int32_t* begin,
                                        Rows<const T> d_out, Rows<float> d_table, int64_t cols) {
  const int64_t column = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (column >= cols) return;
  const int32_t first = begin[blockIdx.x], last = begin[blockIdx.x + 1];
  float* to = d_table.data + ids[order[first]] * d_table.stride + column;
  float sum = *to;
  for (int32_t i = first; i < last; ++i) sum += ToFloat(d_out.data[order[i] * d_out.stride + column]);
  *to = sum;
}

}  // namespace

cudaError_t Embedding(const int32_t* ids, int64_t num_ids, const Tensor& table, const Tensor& out,
                      cudaStream_t stream) {
  LOCKSTEP_CHECK(table.dtype == out.dtype && table.cols == out.cols,
                 "embedding table and output have one shape of row");
  LOCKSTEP_CHECK(out.rows == num_ids, "one row of output an id");
  return WithStorageType(out.dtype, [&]<typename T>(T) {
    return Launch(EmbeddingKernel<T>, num_ids, 1, kThreads, stream, ids, RowsOf<const T>(table), RowsOf<T>(out),
                  out.cols);
  });
}

EmbeddingRuns PlanEmbeddingRuns(std::span<const int32_t> ids) {
  EmbeddingRuns runs;
  runs.order.resize(ids.size());
  std::iota(runs.order.begin(), runs.order.end(), 0);
  const auto id = [&](int32_t token) { return ids[static_cast<size_t>(token)]; };
  std::stable_sort(runs.order.begin(), runs.order.end(), [&](int32_t a, int32_t b) { return id(a) < id(b); });
  for (size_t i = 0; i < runs.order.size(); ++i) {
    if (i == 0 || id(runs.order[i]) != id(runs.order[i - 1])) runs.begin.push_back(static_cast<int32_t>(i));
  }
  runs.begin.push_back(static_cast<int32_t>(ids.size()));
  return runs;
}

cudaError_t EmbeddingBackward(const int32_t* ids, const int32_t* order, const int32_t* begin, int64_t num_runs,
                              const Tensor& d_out, const Tensor& d_table, cudaStream_t stream) {
  LOCKSTEP_CHECK(d_table.dtype == DType::kF32 && d_table.cols == d_out.cols, "the table's gradient is FP32 [V, D]");
  return WithStorageType(d_out.dtype, [&]<typename T>(T) {
    return Launch(EmbeddingBackwardKernel<T>, num_runs, CeilDiv(d_out.cols, kThreads), kThreads, stream, ids, order,
                  begin, RowsOf<const T>(d_out), RowsOf<float>(d_table), d_out.cols);
  });
}

}  // namespace lockstep::cuda
