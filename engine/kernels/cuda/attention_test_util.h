// What the tests of attention share: matrices whose rows 16-byte copies can take, packed inputs, calls.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_TEST_UTIL_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_TEST_UTIL_H_

#include <cmath>
#include <string>
#include <vector>

#include "engine/kernels/cuda/attention.h"
#include "engine/kernels/cuda/emulation_test_util.h"

namespace lockstep::cuda {

// Rows padded by eight elements, which hold NaNs.
inline Matrix AlignedMatrix(DType dtype, int64_t rows, int64_t cols) {
  Matrix matrix(dtype, rows, cols + 5);
  std::memset(matrix.buffer.data(), 0xFF, matrix.buffer.bytes());
  matrix.view.cols = cols;
  return matrix;
}
inline Matrix AlignedMatrix(DType dtype, int64_t rows, int64_t cols, uint32_t seed, float sigma = 1.0f) {
  Matrix matrix = AlignedMatrix(dtype, rows, cols);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, sigma);
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (float& value : values) value = normal(random);
  matrix.Write(values);
  return matrix;
}

inline Matrix AlignedCopy(const Matrix& from) {
  Matrix copy = AlignedMatrix(from.view.dtype, from.view.rows, from.view.cols);
  std::memcpy(copy.buffer.data(), from.buffer.data(), from.buffer.bytes());
  return copy;
}

// Half a step of the storage type, relative.
inline double HalfStep(DType dtype) { return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8; }

inline AttentionShape ShapeOf(int64_t kv_heads, int64_t group, int64_t e) {
  return {kv_heads * group, kv_heads, e, 1.0f / std::sqrt(static_cast<float>(e))};
}

// Sequences of the given lengths one after the other, and their packed attention on the "device".
struct PackedCase {
  PackedCase(const AttentionShape& shape, DType dtype, const std::vector<int32_t>& lengths)
      : shape(shape),
        dtype(dtype),
        lengths(lengths),
        cu(CuSeqlens(lengths)),
        longest(lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end())),
        wide(shape.num_heads * shape.head_dim),
        narrow(shape.num_kv_heads * shape.head_dim),
        q(AlignedMatrix(dtype, tokens(), wide, 1, 2.0f)),
        k(AlignedMatrix(dtype, tokens(), narrow, 2)),
        v(AlignedMatrix(dtype, tokens(), narrow, 3)),
        out(AlignedMatrix(dtype, tokens(), wide)),
        lse(AlignedMatrix(DType::kF32, tokens(), shape.num_heads)) {}

  int64_t tokens() const { return cu.back(); }
  std::string name() const {
    std::string text = std::string(DTypeName(dtype)) + " G " + std::to_string(shape.num_kv_heads) + " H " +
                       std::to_string(shape.num_heads) + " E " + std::to_string(shape.head_dim) + " lengths";
    for (const int32_t length : lengths) text += " " + std::to_string(length);
    return text;
  }
  void Run(Numerics numerics = Numerics::kMatched) const {
    ASSERT_EQ(AttentionPacked(shape, q.view, k.view, v.view, cu.data(), static_cast<int64_t>(lengths.size()), longest,
                              numerics, out.view, lse.view, {}),
              cudaSuccess);
  }

  const AttentionShape shape;
  const DType dtype;
  const std::vector<int32_t> lengths, cu;
  const int32_t longest;
  const int64_t wide, narrow;
  const Matrix q, k, v, out, lse;
};

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_TEST_UTIL_H_
