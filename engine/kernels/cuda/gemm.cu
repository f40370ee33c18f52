// The matched DeviceGemm: checks, and the three products as one (gemm_product.h).
#include "engine/kernels/cuda/gemm.h"
#include "engine/kernels/cuda/gemm_product.h"
#include "engine/kernels/cuda/launch.h"

namespace lockstep::cuda {
namespace {

ProductOperand OperandOf(const Tensor& matrix, bool by_reduction) {
  const int64_t bytes = matrix.stride * static_cast<int64_t>(DTypeSize(matrix.dtype));
  const bool aligned = reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 && bytes % 16 == 0;
  return {matrix.data, matrix.stride, by_reduction, aligned};
}

bool IsOf(const Tensor& matrix, int64_t rows, int64_t cols) { return matrix.rows == rows && matrix.cols == cols; }

class MatchedGemm final : public DeviceGemm {
 public:
  explicit MatchedGemm(GemmTile tile) : tile_(tile) {}

  cudaError_t Linear(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& residual, const Tensor& out,
                     cudaStream_t stream) override {
    return Forward(x, w, nullptr, bias, residual, out, out.cols, stream);
  }
  cudaError_t LinearColumns(const Tensor& x, const Tensor& w, int64_t begin, const Tensor& out,
                            cudaStream_t stream) override {
    LOCKSTEP_CHECK(begin >= 0 && begin + out.cols <= w.rows, "the columns of a linear layer are rows of its weight");
    return Forward(x, w.Rows(begin, out.cols), nullptr, {}, {}, out, w.rows, stream);
  }
  cudaError_t GroupedLinear(const Tensor& x, const Tensor& w, const ExpertRows& experts, const Tensor& out,
                            cudaStream_t stream) override {
    return Forward(x, w, &experts, {}, {}, out, out.cols, stream);
  }
  cudaError_t LinearBackwardInput(const Tensor& d_out, const Tensor& w, const Tensor& d_x, bool accumulate,
                                  cudaStream_t stream) override {
    return BackwardInput(d_out, w, nullptr, d_x, accumulate, stream);
  }
  cudaError_t GroupedLinearBackwardInput(const Tensor& d_out, const Tensor& w, const ExpertRows& experts,
                                         const Tensor& d_x, bool accumulate, cudaStream_t stream) override {
    return BackwardInput(d_out, w, &experts, d_x, accumulate, stream);
  }
  cudaError_t LinearBackwardWeight(const Tensor& d_out, const Tensor& x, const Tensor& d_w, const Tensor& d_bias,
                                   cudaStream_t stream) override {
    const cudaError_t error = BackwardWeight(d_out, x, nullptr, d_w, stream);
    if (error != cudaSuccess || d_bias.data == nullptr) return error;
    LOCKSTEP_CHECK(d_bias.dtype == DType::kF32 && IsOf(d_bias, 1, d_out.cols), "the bias's gradient is FP32 [1, n]");
    return LaunchColumnSums(d_out, d_bias, stream);
  }
  cudaError_t GroupedLinearBackwardWeight(const Tensor& d_out, const Tensor& x, const ExpertRows& experts,
                                          const Tensor& d_w, cudaStream_t stream) override {
    return BackwardWeight(d_out, x, &experts, d_w, stream);
  }

 private:
  // experts: null where there is one weight.
  static int64_t Count(const ExpertRows* experts) {
    if (experts == nullptr) return 1;
    LOCKSTEP_CHECK(experts->num_experts > 0 && experts->offsets != nullptr, "experts come with their offsets");
    return experts->num_experts;
  }
  static Product Begin(const Tensor& a, bool a_by_reduction, const Tensor& b, bool b_by_reduction,
                       const ExpertRows* experts, ExpertCut cut) {
    LOCKSTEP_CHECK(a.dtype == b.dtype, "the operands of a product have one dtype");
    Product product;
    product.dtype = a.dtype;
    product.a = OperandOf(a, a_by_reduction);
    product.b = OperandOf(b, b_by_reduction);
    if (experts != nullptr) {
      product.cut = cut;
      product.experts = *experts;
    }
    return product;
  }
  static void SetOutput(Product& product, const Tensor& out) {
    LOCKSTEP_CHECK(out.dtype == product.dtype || out.dtype == DType::kF32,
                   "a product is stored as its operands or FP32");
    product.out = out.data;
    product.out_stride = out.stride;
    product.out_fp32 = out.dtype == DType::kF32;
  }
  cudaError_t Launch(const Product& product, cudaStream_t stream) const {
    if (product.dtype == DType::kF32) return LaunchFloatProduct(product, stream);
    return LaunchTensorCoreProduct(product, tile_, stream);
  }

  // outputs: of the whole weight, which slices depend on.
  cudaError_t Forward(const Tensor& x, const Tensor& w, const ExpertRows* experts, const Tensor& bias,
                      const Tensor& residual, const Tensor& out, int64_t outputs, cudaStream_t stream) const {
    const int64_t n = out.cols, k = x.cols;
    LOCKSTEP_CHECK(IsOf(w, Count(experts) * n, k) && out.rows == x.rows, "shapes of a linear layer");
    Product product = Begin(w, false, x, false, experts, ExpertCut::kRows);
    product.size_i = n;
    product.size_j = x.rows;
    product.reduction = k;
    product.slice = GemmSliceLength(outputs, k);
    product.a_expert = n * w.stride;
    SetOutput(product, out);
    if (bias.data != nullptr) {
      LOCKSTEP_CHECK(bias.dtype == x.dtype && IsOf(bias, 1, n), "a bias is [1, n] of x's dtype");
      product.bias = bias.data;
    }
    if (residual.data != nullptr) {
      LOCKSTEP_CHECK(residual.dtype == out.dtype && IsOf(residual, out.rows, n),
                     "a residual has out's shape and dtype");
      product.residual = residual.data;
      product.residual_stride = residual.stride;
    }
    return Launch(product, stream);
  }

  cudaError_t BackwardInput(const Tensor& d_out, const Tensor& w, const ExpertRows* experts, const Tensor& d_x,
                            bool accumulate, cudaStream_t stream) const {
    const int64_t n = d_out.cols, k = d_x.cols;
    LOCKSTEP_CHECK(IsOf(w, Count(experts) * n, k) && d_x.rows == d_out.rows, "shapes of a linear layer's backward");
    Product product = Begin(w, true, d_out, false, experts, ExpertCut::kRows);
    product.size_i = k;
    product.size_j = d_out.rows;
    product.reduction = n;
    product.a_expert = n * w.stride;
    product.accumulate = accumulate;
    SetOutput(product, d_x);
    return Launch(product, stream);
  }

  cudaError_t BackwardWeight(const Tensor& d_out, const Tensor& x, const ExpertRows* experts, const Tensor& d_w,
                             cudaStream_t stream) const {
    const int64_t n = d_out.cols, k = x.cols;
    LOCKSTEP_CHECK(IsOf(d_w, Count(experts) * n, k) && x.rows == d_out.rows && d_w.dtype == DType::kF32,
                   "shapes of a linear layer's backward");
    Product product = Begin(x, true, d_out, true, experts, ExpertCut::kReduction);
    product.size_i = k;
    product.size_j = n;
    product.reduction = x.rows;
    product.out_expert = n * d_w.stride;
    product.accumulate = true;
    SetOutput(product, d_w);
    return Launch(product, stream);
  }

  GemmTile tile_;
};

}  // namespace

std::unique_ptr<DeviceGemm> MakeMatchedGemm(GemmTile tile) { return std::make_unique<MatchedGemm>(tile); }

}  // namespace lockstep::cuda
