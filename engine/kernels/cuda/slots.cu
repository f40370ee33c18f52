// Slots of a mixture of experts, and rows between tokens and slots. A thread has 8 columns of a row; a dot has 8
// threads.
#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/cuda/moe.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;
// Threads of an expert's block: decoding steps have few pairs.
constexpr int kSortThreads = 256, kSortThreadsMax = 1024;
constexpr int64_t kSortSmall = 4096;  // pairs

struct SlotArgs {
  const int32_t* experts;
  const float* weights;
  int64_t pairs, top_k;
  int32_t *slots, *slot_tokens;
  float* slot_weights;
  int32_t* offsets;
};

// Expert `blockIdx.x`: its first slot is the number of pairs of lower experts; its pairs follow in their order.
__global__ void AssignSlotsKernel(SlotArgs a) {
  __shared__ int shared[kSortThreadsMax / kWarp];
  const auto expert = static_cast<int32_t>(blockIdx.x);
  int lower = 0;
  for (int64_t i = threadIdx.x; i < a.pairs; i += blockDim.x) lower += a.experts[i] < expert ? 1 : 0;
  int next = BlockSum(lower, shared);
  if (threadIdx.x == 0) a.offsets[expert] = next;
  if (threadIdx.x == 0 && blockIdx.x + 1 == gridDim.x) a.offsets[gridDim.x] = static_cast<int32_t>(a.pairs);
  for (int64_t base = 0; base < a.pairs; base += blockDim.x) {
    const int64_t i = base + threadIdx.x;
    const bool mine = i < a.pairs && a.experts[i] == expert;
    int total = 0;
    const int slot = next + BlockRank(mine, shared, total);
    next += total;
    if (!mine) continue;
    a.slots[i] = slot;
    a.slot_tokens[slot] = static_cast<int32_t>(i / a.top_k);
    a.slot_weights[slot] = a.weights[i];
  }
}

template <typename T>
__device__ void CopyVector(const T* from, int64_t count, T* to) {
  if (count >= kVector && Aligned16(from) && Aligned16(to)) {
    *reinterpret_cast<Pack<T>*>(to) = *reinterpret_cast<const Pack<T>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < count) to[i] = from[i];
    }
  }
}

template <typename T>
__global__ void GatherRowsKernel(Rows<const T> x, const int32_t* rows, const float* scale, Rows<T> out, int64_t count,
                                 int64_t cols) {
  const int64_t vectors = (cols + kVector - 1) / kVector;
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count * vectors) return;
  const int64_t row = at / vectors, c = at % vectors * kVector;
  const T* from = x.data + rows[row] * x.stride + c;
  T* to = out.data + row * out.stride + c;
  if (scale == nullptr) return CopyVector(from, cols - c, to);
  const float factor = scale[row];
  float v[kVector];
  Load(from, cols - c, v);
#pragma unroll
  for (int i = 0; i < kVector; ++i) v[i] *= factor;
  Store(to, cols - c, v);
}

template <typename T>
struct CombineArgs {
  Rows<const T> x;
  const int32_t* slots;
  const float* weights;    // null: ones
  Rows<const T> residual;  // data null: none
  Rows<T> out;
  int64_t rows, cols, top_k;
};

template <typename T>
__global__ void CombineRowsKernel(CombineArgs<T> a) {
  const int64_t vectors = (a.cols + kVector - 1) / kVector;
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= a.rows * vectors) return;
  const int64_t t = at / vectors, c = at % vectors * kVector, count = a.cols - c;
  float sum[kVector] = {}, v[kVector];
  for (int64_t j = t * a.top_k; j < (t + 1) * a.top_k; ++j) {
    const float weight = a.weights == nullptr ? 1.0f : a.weights[j];
    Load(a.x.data + a.slots[j] * a.x.stride + c, count, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] = fmaf(weight, v[i], sum[i]);
  }
  if (a.residual.data != nullptr) {
    Load(a.residual.data + t * a.residual.stride + c, count, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] = v[i] + ToFloat(FromFloat<T>(sum[i]));
  }
  Store(a.out.data + t * a.out.stride + c, count, sum);
}

template <typename T>
__global__ void RowDotsKernel(Rows<const T> a, Rows<const T> b, const int32_t* rows, int64_t count, int64_t cols,
                              float* out) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, i = at / kVirtualLanes;
  const int64_t lane = at % kVirtualLanes;
  if (i >= count) return;  // all eight
  const int64_t row = rows == nullptr ? i : rows[i];
  const T *u = a.data + row * a.stride, *v = b.data + row * b.stride;
  float sum = 0;
#pragma unroll 4
  for (int64_t c = lane; c - lane < cols; c += kVirtualLanes) {  // lanes behind the end add 0, as on the CPU
    sum = fmaf(c < cols ? ToFloat(u[c]) : 0.0f, c < cols ? ToFloat(v[c]) : 0.0f, sum);
  }
  sum = SumLanes(sum, LaneGroupMask());
  if (lane == 0) out[i] = sum;
}

}  // namespace

cudaError_t AssignSlots(const int32_t* experts, const float* weights, int64_t tokens, int64_t top_k,
                        int64_t num_experts, int32_t* slots, int32_t* slot_tokens, float* slot_weights,
                        int32_t* offsets, cudaStream_t stream) {
  LOCKSTEP_CHECK(top_k >= 1 && num_experts >= top_k && tokens * top_k <= 0x7FFFFFFF, "slots are counted in int32");
  const SlotArgs args = {experts, weights, tokens * top_k, top_k, slots, slot_tokens, slot_weights, offsets};
  const int64_t threads = args.pairs <= kSortSmall ? kSortThreads : kSortThreadsMax;
  return Launch(AssignSlotsKernel, num_experts, 1, threads, stream, args);
}

cudaError_t GatherRows(const Tensor& x, const int32_t* rows, const float* scale, const Tensor& out,
                       cudaStream_t stream) {
  LOCKSTEP_CHECK(x.dtype == out.dtype && x.cols == out.cols, "a gather keeps dtype and columns");
  const int64_t threads = out.rows * CeilDiv(out.cols, kVector);
  return WithStorageType(x.dtype, [&]<typename T>(T) {
    return Launch(GatherRowsKernel<T>, CeilDiv(threads, kThreads), 1, kThreads, stream, RowsOf<const T>(x), rows, scale,
                  RowsOf<T>(out), out.rows, out.cols);
  });
}

cudaError_t CombineRows(const Tensor& x, const int32_t* slots, int64_t top_k, const float* weights,
                        const Tensor& residual, const Tensor& out, cudaStream_t stream) {
  LOCKSTEP_CHECK(top_k >= 1 && x.rows == out.rows * top_k && x.cols == out.cols && x.dtype == out.dtype,
                 "a token is the sum of K slots");
  LOCKSTEP_CHECK(residual.data == nullptr ||
                     (residual.dtype == out.dtype && residual.rows == out.rows && residual.cols == out.cols),
                 "the residual has the output's shape and dtype");
  const int64_t threads = out.rows * CeilDiv(out.cols, kVector);
  return WithStorageType(x.dtype, [&]<typename T>(T) {
    const CombineArgs<T> args = {RowsOf<const T>(x), slots,    weights,  RowsOf<const T>(residual),
                                 RowsOf<T>(out),     out.rows, out.cols, top_k};
    return Launch(CombineRowsKernel<T>, CeilDiv(threads, kThreads), 1, kThreads, stream, args);
  });
}

cudaError_t RowDots(const Tensor& a, const Tensor& b, const int32_t* rows, int64_t count, float* out,
                    cudaStream_t stream) {
  LOCKSTEP_CHECK(a.dtype == b.dtype && a.rows == b.rows && a.cols == b.cols, "the rows of a dot have one shape");
  LOCKSTEP_CHECK(rows != nullptr || count <= a.rows, "more dots than rows");
  return WithStorageType(a.dtype, [&]<typename T>(T) {
    return Launch(RowDotsKernel<T>, CeilDiv(count * kVirtualLanes, kThreads), 1, kThreads, stream, RowsOf<const T>(a),
                  RowsOf<const T>(b), rows, count, a.cols, out);
  });
}

}  // namespace lockstep::cuda
