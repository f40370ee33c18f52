// The FP32 end of a step: global norm in the fixed order, and AdamW with unscale, clip and the finite check folded in.
#include "engine/kernels/cuda/bricks.cuh"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 4;  // of a chunk's sum of squares
constexpr int kTotalThreads = 1024;

// Four threads have a chunk: one FP64 chain each.
__global__ void NormPartialKernel(const float* grad, int64_t n, int64_t chunks, double* partial) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, chunk = at / kLanes;
  double sum = 0;
  if (chunk < chunks) {
    const int64_t begin = chunk * kGradNormChunk;
    const int64_t end = n - begin < kGradNormChunk ? n : begin + kGradNormChunk;
#pragma unroll 8
    for (int64_t i = begin + at % kLanes; i < end; i += kLanes) {
      const double g = grad[i];
      sum = fma(g, g, sum);
    }
  }
  sum += __shfl_xor_sync(kFullWarp, sum, 1);
  sum += __shfl_xor_sync(kFullWarp, sum, 2);
  if (chunk < chunks && at % kLanes == 0) partial[chunk] = sum;
}

// One block: all threads bring the partial sums to shared memory, the first adds them in their order.
__global__ void NormTotalKernel(const double* partial, int64_t chunks, double scale, double limit,
                                StepControl* control) {
  __shared__ double tile[kTotalThreads];
  double total = 0;
  for (int64_t first = 0; first < chunks; first += kTotalThreads) {
    const int count = chunks - first < kTotalThreads ? static_cast<int>(chunks - first) : kTotalThreads;
    const int i = static_cast<int>(threadIdx.x);
    if (i < count) tile[i] = partial[first + i];
    __syncthreads();
    if (i == 0) {
#pragma unroll 8
      for (int c = 0; c < count; ++c) total += tile[c];
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  const double norm = sqrt(total) / scale;
  const double clip = limit > 0 && norm > limit ? limit / (norm + 1e-6) : 1.0;
  const bool finite = norm - norm == 0;  // inf and NaN give NaN
  *control = {norm, static_cast<float>(clip / scale), finite ? 1 : 0};
}

struct AdamWArgs {
  AdamWFactors factors;
  float beta1, beta2, eps;
  const StepControl* control;
  float *param, *m, *v;
  const float* grad;
  int64_t n;
};

// A thread has 8 elements. copy null: none.
template <typename Copy>
__global__ void AdamWKernel(AdamWArgs a, Copy* copy) {
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kVector;
  if (i >= a.n || a.control->finite == 0) return;
  const float multiplier = a.control->grad_multiplier;
  const int64_t count = a.n - i;
  float p[kVector], m[kVector], v[kVector], g[kVector];
  Load(a.param + i, count, p);
  Load(a.m + i, count, m);
  Load(a.v + i, count, v);
  Load(a.grad + i, count, g);
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    const float unscaled = g[j] * multiplier;
    m[j] = a.beta1 * m[j] + (1.0f - a.beta1) * unscaled;
    v[j] = a.beta2 * v[j] + (1.0f - a.beta2) * unscaled * unscaled;
    p[j] = p[j] * a.factors.keep - a.factors.step_size * m[j] / (sqrtf(v[j]) * a.factors.inverse_sqrt2 + a.eps);
  }
  Store(a.param + i, count, p);
  Store(a.m + i, count, m);
  Store(a.v + i, count, v);
  if (copy != nullptr) Store(copy + i, count, p);
}

}  // namespace

int64_t GradNormScratch(int64_t n) { return CeilDiv(n, kGradNormChunk); }

cudaError_t GradNorm(const float* grad, int64_t n, double scale, double limit, double* scratch, StepControl* control,
                     cudaStream_t stream) {
  LOCKSTEP_CHECK(scale > 0, "a loss scale is positive");
  const int64_t chunks = GradNormScratch(n);
  const cudaError_t error =
      Launch(NormPartialKernel, CeilDiv(chunks * kLanes, kThreads), 1, kThreads, stream, grad, n, chunks, scratch);
  if (error != cudaSuccess) return error;
  return Launch(NormTotalKernel, 1, 1, kTotalThreads, stream, scratch, chunks, scale, limit, control);
}

cudaError_t AdamW(const AdamWParams& params, const StepControl* control, float* param, float* m, float* v,
                  const float* grad, int64_t n, DType copy_dtype, void* copy, cudaStream_t stream) {
  const AdamWArgs args = {FactorsOf(params), params.beta1, params.beta2, params.eps, control, param, m, v, grad, n};
  return WithStorageType(copy_dtype, [&]<typename T>(T) {
    return Launch(AdamWKernel<T>, CeilDiv(n, kThreads * kVector), 1, kThreads, stream, args, static_cast<T*>(copy));
  });
}

}  // namespace lockstep::cuda
