// Says which device and driver there are, and runs one kernel on it: the smallest program that needs all of toolkit,
// link and driver. Exit 0: a kernel ran and gave what it should. 77: there is no device to use, in one line. 1: it
// failed.
#include <cuda_runtime.h>

#include <cstdio>

#include "engine/kernels/cuda/kernels.h"

namespace lockstep::cuda {
namespace {

constexpr int kNoDevice = 77;

// 3 silu(1), of a row with gate 1 and up 3.
cudaError_t RunOneKernel(float* result) {
  float* memory = nullptr;
  cudaError_t error = cudaMalloc(reinterpret_cast<void**>(&memory), 3 * sizeof(float));
  if (error != cudaSuccess) return error;
  const float gate_up[2] = {1.0f, 3.0f};
  error = cudaMemcpy(memory, gate_up, sizeof(gate_up), cudaMemcpyHostToDevice);
  if (error == cudaSuccess)
    error = SwiGlu(Tensor(memory, DType::kF32, 1, 2), Tensor(memory + 2, DType::kF32, 1, 1), {});
  if (error == cudaSuccess) error = cudaMemcpy(result, memory + 2, sizeof(float), cudaMemcpyDeviceToHost);
  cudaFree(memory);
  return error;
}

int Probe() {
  int count = 0, driver = 0, runtime = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (found != cudaSuccess || count == 0) {
    std::printf("no CUDA device: %s (driver %d.%d, runtime %d.%d; driver 0.0 is none)\n",
                found == cudaSuccess ? "none found" : cudaGetErrorString(found), driver / 1000, driver % 1000 / 10,
                runtime / 1000, runtime % 1000 / 10);
    return kNoDevice;
  }
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, 0); error != cudaSuccess) {
    std::fprintf(stderr, "the device does not answer: %s\n", cudaGetErrorString(error));
    return 1;
  }
  float result = 0;
  if (const cudaError_t error = RunOneKernel(&result); error != cudaSuccess) {
    std::fprintf(stderr, "a kernel does not run on %s (sm_%d%d): %s\n", properties.name, properties.major,
                 properties.minor, cudaGetErrorString(error));
    return 1;
  }
  const float expected = 2.19317573589f;  // 3 silu(1)
  if (!(result > expected - 1e-5f && result < expected + 1e-5f)) {
    std::fprintf(stderr, "a kernel gave %.9g on %s, not %.9g\n", static_cast<double>(result), properties.name,
                 static_cast<double>(expected));
    return 1;
  }
  // What is not free where nothing else runs is this process's context.
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  std::printf("%d CUDA device(s); 0: %s, sm_%d%d, driver %d.%d, runtime %d.%d, %zu of %zu MiB free; a kernel ran\n",
              count, properties.name, properties.major, properties.minor, driver / 1000, driver % 1000 / 10,
              runtime / 1000, runtime % 1000 / 10, free_bytes >> 20, total_bytes >> 20);
  return 0;
}

}  // namespace
}  // namespace lockstep::cuda

int main() { return lockstep::cuda::Probe(); }
