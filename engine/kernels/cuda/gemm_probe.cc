// Native products (cuBLASLt) beside the matched ones on the device that there is: the smallest program that needs
// toolkit, link, library and driver. Exit 0: both agree. 77: there is no device to use, or no cuBLASLt, in one line. 1:
// it failed, or they differ.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "engine/kernels/cuda/cublaslt_library.h"
#include "engine/kernels/cuda/gemm_cublaslt.h"

namespace lockstep::cuda {
namespace {

constexpr int kNothingToUse = 77;
constexpr int64_t kRows = 40, kN = 72, kK = 136;

// A dense matrix on the device, of small whole numbers over 8 from a linear congruence: products of them are exact in
// FP32 in any order.
class DeviceMatrix {
 public:
  DeviceMatrix(DType dtype, int64_t rows, int64_t cols, uint32_t seed) : view(nullptr, dtype, rows, cols) {
    std::vector<__half> halves;
    std::vector<float> floats;
    for (int64_t i = 0; i < rows * cols; ++i) {
      seed = seed * 1664525u + 1013904223u;
      floats.push_back(static_cast<float>(static_cast<int>(seed >> 28) - 8) / 8);
      halves.push_back(__float2half_rn(floats.back()));
    }
    const size_t bytes = floats.size() * DTypeSize(dtype);
    error = cudaMalloc(&view.data, bytes);
    if (error != cudaSuccess) return;
    const void* from = dtype == DType::kF32 ? static_cast<const void*>(floats.data()) : halves.data();
    error = cudaMemcpy(view.data, from, bytes, cudaMemcpyHostToDevice);
  }
  DeviceMatrix(const DeviceMatrix&) = delete;
  DeviceMatrix& operator=(const DeviceMatrix&) = delete;
  ~DeviceMatrix() { cudaFree(view.data); }

  std::vector<float> Floats() {
    std::vector<float> values(static_cast<size_t>(view.rows * view.cols));
    error = cudaMemcpy(values.data(), view.data, values.size() * sizeof(float), cudaMemcpyDeviceToHost);
    return values;
  }

  Tensor view;
  cudaError_t error = cudaSuccess;
};

// All three products into FP32, one after the other.
cudaError_t Products(DeviceGemm& gemm, std::vector<float>& results) {
  DeviceMatrix x(DType::kF16, kRows, kK, 1), w(DType::kF16, kN, kK, 2), d_out(DType::kF16, kRows, kN, 3);
  DeviceMatrix out(DType::kF32, kRows, kN, 4), d_x(DType::kF32, kRows, kK, 5), d_w(DType::kF32, kN, kK, 6);
  for (const DeviceMatrix* matrix : {&x, &w, &d_out, &out, &d_x, &d_w}) {
    if (matrix->error != cudaSuccess) return matrix->error;
  }
  cudaError_t error = gemm.Linear(x.view, w.view, {}, out.view, out.view, {});
  if (error == cudaSuccess) error = gemm.LinearBackwardInput(d_out.view, w.view, d_x.view, true, {});
  if (error == cudaSuccess) error = gemm.LinearBackwardWeight(d_out.view, x.view, d_w.view, {}, {});
  if (error != cudaSuccess) return error;
  for (DeviceMatrix* matrix : {&out, &d_x, &d_w}) {
    const std::vector<float> values = matrix->Floats();
    if (matrix->error != cudaSuccess) return matrix->error;
    results.insert(results.end(), values.begin(), values.end());
  }
  return cudaSuccess;
}

int Fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  return 1;
}

int Probe() {
  const auto library = LoadCublasLt();
  if (!library.ok()) {
    std::printf("no cuBLASLt: %s\n", std::string(library.status().message()).c_str());
    return kNothingToUse;
  }
  const size_t version = (*library)->GetVersion();
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess || count == 0) {
    std::printf("no CUDA device: %s (cuBLASLt %zu is there)\n",
                found == cudaSuccess ? "none found" : cudaGetErrorString(found), version);
    return kNothingToUse;
  }
  auto native = MakeNativeGemm(nullptr, 0);
  if (!native.ok()) return Fail(std::string(native.status().message()));
  std::vector<float> expected, got, again;
  cudaError_t error = Products(*MakeMatchedGemm(), expected);
  if (error == cudaSuccess) error = Products(**native, got);
  if (error == cudaSuccess) error = Products(**native, again);
  if (error != cudaSuccess) return Fail(std::string("a matrix product does not run: ") + cudaGetErrorString(error));
  for (size_t i = 0; i < expected.size(); ++i) {
    if (got[i] != expected[i] || again[i] != got[i]) {
      return Fail("element " + std::to_string(i) + " is " + std::to_string(got[i]) + " by cuBLASLt and " +
                  std::to_string(expected[i]) + " by the matched kernels");
    }
  }
  std::printf("%zu results of matrix products are equal by cuBLASLt %zu and by the matched kernels\n", expected.size(),
              version);
  return 0;
}

}  // namespace
}  // namespace lockstep::cuda

int main() { return lockstep::cuda::Probe(); }
