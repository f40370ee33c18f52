// What the tests of the emulated kernels share: the CPU's matched operations beside them, bit comparison, and every
// order of the emulation's turns.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_TEST_UTIL_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_TEST_UTIL_H_

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "engine/kernels/cuda/emulation/fibers.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/ops.h"
#include "engine/kernels/ops_test_util.h"
#include "gtest/gtest.h"

namespace lockstep::cuda {

inline constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// A test of one dtype, with the CPU's matched operations and the plain reference at hand.
class KernelTest : public testing::TestWithParam<DType> {
 protected:
  KernelTest() : cpu_(MakeCpuOps(Numerics::kMatched, 1)), reference_(MakeReferenceOps()) {}
  ~KernelTest() override { emulation::SetOrder(emulation::Order::kAscending); }

  DType dtype() const { return GetParam(); }
  Matrix Make(int64_t rows, int64_t cols, uint32_t seed, float sigma = 1.0f) const {
    return Matrix(dtype(), rows, cols, seed, sigma);
  }

  std::unique_ptr<Ops> cpu_, reference_;
};

inline std::string DTypeTestName(const testing::TestParamInfo<DType>& info) {
  return std::string(DTypeName(info.param));
}

// Calls body() once in each order of turns.
template <typename Body>
void InEveryOrder(Body&& body) {
  for (const auto order : {emulation::Order::kAscending, emulation::Order::kDescending, emulation::Order::kShuffled}) {
    SCOPED_TRACE("order " + std::to_string(static_cast<int>(order)));
    emulation::SetOrder(order);
    body();
  }
  emulation::SetOrder(emulation::Order::kAscending);
}

// The whole buffers, padding included, are equal byte for byte: a kernel writes nothing between rows either.
inline void ExpectSameBytes(const Matrix& got, const Matrix& expected, const std::string& where) {
  ASSERT_EQ(got.buffer.bytes(), expected.buffer.bytes()) << where;
  const auto* a = static_cast<const unsigned char*>(got.buffer.data());
  const auto* b = static_cast<const unsigned char*>(expected.buffer.data());
  for (size_t i = 0; i < got.buffer.bytes(); ++i) {
    ASSERT_EQ(a[i], b[i]) << where << ": byte " << i << " of " << got.buffer.bytes();
  }
}

inline void ExpectSameFloats(const std::vector<float>& got, const std::vector<float>& expected,
                             const std::string& where) {
  ASSERT_EQ(got.size(), expected.size()) << where;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::memcmp(&got[i], &expected[i], sizeof(float)), 0)
        << where << " element " << i << ": " << got[i] << " and " << expected[i];
  }
}

inline Matrix Copy(const Matrix& from) {
  Matrix copy(from.view.dtype, from.view.rows, from.view.cols);
  std::memcpy(copy.buffer.data(), from.buffer.data(), from.buffer.bytes());
  return copy;
}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_TEST_UTIL_H_
