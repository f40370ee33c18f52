#include "engine/kernels/cuda/gemm_cublaslt.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/kernels/cuda/cublaslt_library.h"
#include "engine/kernels/cuda/gemm_product.h"

namespace lockstep::cuda {
namespace {

cudaError_t ErrorOf(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return cudaSuccess;
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return cudaErrorInitializationError;
    case CUBLAS_STATUS_ALLOC_FAILED:
      return cudaErrorMemoryAllocation;
    case CUBLAS_STATUS_INVALID_VALUE:
      return cudaErrorInvalidValue;
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return cudaErrorNoKernelImageForDevice;
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return cudaErrorLaunchFailure;
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return cudaErrorNotSupported;
    default:  // of the library or of the context, and none of them says that the device itself is lost
      return cudaErrorLaunchFailure;
  }
}

cudaDataType_t TypeOf(DType dtype) {
  return dtype == DType::kF32 ? CUDA_R_32F : dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

// The largest power of two up to 256 that divides the address.
uint32_t AlignmentOf(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer) | 256;
  return static_cast<uint32_t>(address & (~address + 1));
}

// d = a b [+ bias] [+ c], as the library counts: column-major, so a row-major matrix is its own transpose. d is m x n
// (the columns of a row-major output are its rows), bias [m].
struct Call {
  Tensor a, b, c, d;  // row-major; c null-data: nothing is added
  bool transpose_a = false, transpose_b = false;
  const void* bias = nullptr;
  int64_t m = 0, n = 0, k = 0;
};

using Key = std::array<int64_t, 17>;

Key KeyOf(const Call& call) {
  const bool adds = call.c.data != nullptr;
  return {call.transpose_a,
          call.transpose_b,
          static_cast<int64_t>(call.a.dtype),
          static_cast<int64_t>(call.d.dtype),
          call.m,
          call.n,
          call.k,
          call.a.stride,
          call.b.stride,
          call.d.stride,
          adds ? call.c.stride : 0,
          call.bias == nullptr ? 0 : AlignmentOf(call.bias),
          AlignmentOf(call.a.data),
          AlignmentOf(call.b.data),
          AlignmentOf(call.d.data),
          adds ? AlignmentOf(call.c.data) : 0,
          adds && call.c.data == call.d.data};
}

class NativeGemm final : public DeviceGemm {
 public:
  NativeGemm(const CublasLtLibrary& library, cublasLtHandle_t handle, void* workspace, int64_t workspace_bytes)
      : library_(library),
        handle_(handle),
        workspace_(workspace),
        workspace_bytes_(static_cast<size_t>(workspace_bytes)),
        own_(MakeMatchedGemm()) {}

  ~NativeGemm() override {
    for (const auto& [key, plan] : plans_) DestroyPlan(plan);
    library_.Destroy(handle_);
  }

  cudaError_t Linear(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& residual, const Tensor& out,
                     cudaStream_t stream) override {
    LOCKSTEP_CHECK(x.dtype == w.dtype && x.cols == w.cols && out.cols == w.rows && out.rows == x.rows,
                   "shapes of a linear layer");
    LOCKSTEP_CHECK(residual.data == nullptr || residual.dtype == out.dtype, "a residual has out's dtype");
    const auto own = [&] { return own_->Linear(x, w, bias, residual, out, stream); };
    if (bias.data != nullptr && out.dtype != x.dtype) return own();
    return Run({w, x, residual, out, true, false, bias.data, out.cols, x.rows, x.cols}, own, stream);
  }

  cudaError_t LinearColumns(const Tensor& x, const Tensor& w, int64_t begin, const Tensor& out,
                            cudaStream_t stream) override {
    LOCKSTEP_CHECK(begin >= 0 && begin + out.cols <= w.rows, "the columns of a linear layer are rows of its weight");
    return Linear(x, w.Rows(begin, out.cols), {}, {}, out, stream);
  }

  cudaError_t LinearBackwardInput(const Tensor& d_out, const Tensor& w, const Tensor& d_x, bool accumulate,
                                  cudaStream_t stream) override {
    LOCKSTEP_CHECK(d_out.dtype == w.dtype && d_out.cols == w.rows && d_x.cols == w.cols && d_x.rows == d_out.rows,
                   "shapes of a linear layer's backward");
    const auto own = [&] { return own_->LinearBackwardInput(d_out, w, d_x, accumulate, stream); };
    return Run({w, d_out, accumulate ? d_x : Tensor(), d_x, false, false, nullptr, d_x.cols, d_x.rows, d_out.cols}, own,
               stream);
  }

  cudaError_t LinearBackwardWeight(const Tensor& d_out, const Tensor& x, const Tensor& d_w, const Tensor& d_bias,
                                   cudaStream_t stream) override {
    LOCKSTEP_CHECK(d_out.dtype == x.dtype && d_out.rows == x.rows && d_w.dtype == DType::kF32 &&
                       d_w.rows == d_out.cols && d_w.cols == x.cols,
                   "shapes of a linear layer's backward");
    const auto own = [&] { return own_->LinearBackwardWeight(d_out, x, d_w, {}, stream); };
    const cudaError_t error = Run({x, d_out, d_w, d_w, false, true, nullptr, d_w.cols, d_w.rows, x.rows}, own, stream);
    if (error != cudaSuccess || d_bias.data == nullptr) return error;
    LOCKSTEP_CHECK(d_bias.dtype == DType::kF32 && d_bias.rows == 1 && d_bias.cols == d_out.cols,
                   "the bias's gradient is FP32 [1, n]");
    return LaunchColumnSums(d_out, d_bias, stream);
  }

  cudaError_t GroupedLinear(const Tensor& x, const Tensor& w, const ExpertRows& experts, const Tensor& out,
                            cudaStream_t stream) override {
    return own_->GroupedLinear(x, w, experts, out, stream);
  }
  cudaError_t GroupedLinearBackwardInput(const Tensor& d_out, const Tensor& w, const ExpertRows& experts,
                                         const Tensor& d_x, bool accumulate, cudaStream_t stream) override {
    return own_->GroupedLinearBackwardInput(d_out, w, experts, d_x, accumulate, stream);
  }
  cudaError_t GroupedLinearBackwardWeight(const Tensor& d_out, const Tensor& x, const ExpertRows& experts,
                                          const Tensor& d_w, cudaStream_t stream) override {
    return own_->GroupedLinearBackwardWeight(d_out, x, experts, d_w, stream);
  }

 private:
  struct Plan {
    cublasLtMatmulDesc_t product = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, d = nullptr;
    cublasLtMatmulAlgo_t algorithm = {};
    bool supported = false;  // else the matched kernels
  };

  template <typename Own>
  cudaError_t Run(const Call& call, Own&& own, cudaStream_t stream) {
    if (call.m == 0 || call.n == 0) return cudaSuccess;
    if (call.k == 0) return own();  // the library wants a reduction
    const Key key = KeyOf(call);
    auto found = plans_.find(key);
    if (found == plans_.end()) {
      Plan plan;
      if (const cublasStatus_t status = MakePlan(call, plan); status != CUBLAS_STATUS_SUCCESS) {
        DestroyPlan(plan);
        return ErrorOf(status);
      }
      found = plans_.emplace(key, plan).first;
    }
    const Plan& plan = found->second;
    if (!plan.supported) return own();
    if (call.bias != nullptr) {
      const cublasStatus_t status = Set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);
      if (status != CUBLAS_STATUS_SUCCESS) return ErrorOf(status);
    }
    const float one = 1, beta = call.c.data != nullptr ? 1 : 0;
    return ErrorOf(library_.Matmul(handle_, plan.product, &one, call.a.data, plan.a, call.b.data, plan.b, &beta,
                                   call.c.data != nullptr ? call.c.data : call.d.data, plan.c, call.d.data, plan.d,
                                   &plan.algorithm, workspace_, workspace_bytes_, stream));
  }

  template <typename Value>
  cublasStatus_t Set(const Plan& plan, cublasLtMatmulDescAttributes_t attribute, const Value& value) const {
    return library_.MatmulDescSetAttribute(plan.product, attribute, &value, sizeof(value));
  }

  cublasStatus_t MakePlan(const Call& call, Plan& plan) const {
    const cublasOperation_t a = call.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t b = call.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    // As it lies in memory: the columns of a row-major matrix are the library's rows.
    const auto layout = [&](cublasLtMatrixLayout_t& to, const Tensor& matrix) {
      return library_.MatrixLayoutCreate(&to, TypeOf(matrix.dtype), static_cast<uint64_t>(matrix.cols),
                                         static_cast<uint64_t>(matrix.rows), matrix.stride);
    };
    cublasStatus_t status = library_.MatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const auto then = [&](auto&& step) {
      if (status == CUBLAS_STATUS_SUCCESS) status = step();
    };
    then([&] { return Set(plan, CUBLASLT_MATMUL_DESC_TRANSA, a); });
    then([&] { return Set(plan, CUBLASLT_MATMUL_DESC_TRANSB, b); });
    if (call.bias != nullptr) {
      then([&] { return Set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS); });
      then([&] { return Set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias); });
    }
    then([&] { return layout(plan.a, call.a); });
    then([&] { return layout(plan.b, call.b); });
    then([&] { return layout(plan.c, call.c.data != nullptr ? call.c : call.d); });
    then([&] { return layout(plan.d, call.d); });
    cublasLtMatmulPreference_t preference = nullptr;
    then([&] { return library_.MatmulPreferenceCreate(&preference); });
    then([&] { return Choose(call, preference, plan); });
    if (preference != nullptr) library_.MatmulPreferenceDestroy(preference);
    return status;
  }

  // The heuristic's first choice that fits the workspace; none is not an error.
  cublasStatus_t Choose(const Call& call, cublasLtMatmulPreference_t preference, Plan& plan) const {
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      if (status == CUBLAS_STATUS_SUCCESS) {
        status = library_.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value));
      }
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes_);
    // Of split reductions only those whose parts are FP32 and lie in the workspace.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, AlignmentOf(call.a.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, AlignmentOf(call.b.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, AlignmentOf(call.c.data != nullptr ? call.c.data : call.d.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, AlignmentOf(call.d.data));
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    cublasLtMatmulHeuristicResult_t result = {};
    int count = 0;
    status = library_.MatmulAlgoGetHeuristic(handle_, plan.product, plan.a, plan.b, plan.c, plan.d, preference, 1,
                                             &result, &count);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return CUBLAS_STATUS_SUCCESS;
    if (status != CUBLAS_STATUS_SUCCESS || count == 0 || result.state != CUBLAS_STATUS_SUCCESS) return status;
    plan.algorithm = result.algo;
    plan.supported = result.workspaceSize <= workspace_bytes_;
    return CUBLAS_STATUS_SUCCESS;
  }

  void DestroyPlan(const Plan& plan) const {
    for (const cublasLtMatrixLayout_t layout : {plan.a, plan.b, plan.c, plan.d}) {
      if (layout != nullptr) library_.MatrixLayoutDestroy(layout);
    }
    if (plan.product != nullptr) library_.MatmulDescDestroy(plan.product);
  }

  const CublasLtLibrary& library_;
  cublasLtHandle_t handle_;
  void* workspace_;
  size_t workspace_bytes_;
  std::unique_ptr<DeviceGemm> own_;
  std::map<Key, Plan> plans_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceGemm>> MakeNativeGemm(void* workspace, int64_t workspace_bytes) {
  LOCKSTEP_CHECK(workspace_bytes >= 0 && (workspace != nullptr || workspace_bytes == 0), "a workspace has its bytes");
  const auto library = LoadCublasLt();
  if (!library.ok()) return library.status();
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = (*library)->Create(&handle);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return absl::UnavailableError(absl::StrCat("cuBLASLt ", (*library)->GetVersion(),
                                               " does not start: ", (*library)->GetStatusName(status),
                                               "; see that a CUDA device and its driver are there (nvidia-smi)"));
  }
  return std::make_unique<NativeGemm>(**library, handle, workspace, workspace_bytes);
}

}  // namespace lockstep::cuda
