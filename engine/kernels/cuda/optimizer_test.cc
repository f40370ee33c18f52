// Global norm and AdamW, compiled for the CPU, against the CPU's: equal bits.
#include "engine/kernels/optimizer.h"

#include <cmath>
#include <limits>

#include "engine/kernels/cpu/thread_pool.h"
#include "engine/kernels/cuda/emulation_test_util.h"

namespace lockstep::cuda {
namespace {

std::vector<float> Normal(int64_t n, uint32_t seed, float sigma) {
  return Matrix(DType::kF32, 1, n, seed, sigma).Read();
}

StepControl NormOf(const std::vector<float>& grad, double scale, double limit) {
  StepControl control;
  const auto n = static_cast<int64_t>(grad.size());
  std::vector<double> scratch(static_cast<size_t>(GradNormScratch(n)) + 1);
  EXPECT_EQ(GradNorm(grad.data(), n, scale, limit, scratch.data(), &control, {}), cudaSuccess);
  return control;
}

TEST(OptimizerTest, TheNormHasTheBitsOfTheCpu) {
  ThreadPool pool(1);
  for (const int64_t n : {1, 3, 1001, 65536, 65537, 200003}) {
    const std::vector<float> grad = Normal(n, 1, 100);
    const double expected = std::sqrt(GradNormSquared(grad.data(), n, pool)) / 1024;
    InEveryOrder([&] {
      const StepControl control = NormOf(grad, 1024, 0);
      EXPECT_EQ(control.norm, expected) << n;
      EXPECT_EQ(control.finite, 1);
      EXPECT_EQ(control.grad_multiplier, 1.0f / 1024);
    });
    const StepControl clipped = NormOf(grad, 1024, expected / 2);
    EXPECT_EQ(clipped.grad_multiplier, static_cast<float>(expected / 2 / (expected + 1e-6) / 1024));
  }
}

TEST(OptimizerTest, OneElementThatIsNotFiniteIsFound) {
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    for (const size_t at : {size_t{0}, size_t{65539}, size_t{70000}}) {
      std::vector<float> grad = Normal(70001, 1, 1);
      grad[at] = bad;
      EXPECT_EQ(NormOf(grad, 2, 1).finite, 0) << at;
    }
  }
  // FP32's largest, squared and summed, is finite in FP64.
  EXPECT_EQ(NormOf(std::vector<float>(1000, std::numeric_limits<float>::max()), 2, 1).finite, 1);
}

class AdamWTest : public KernelTest {};
INSTANTIATE_TEST_SUITE_P(DTypes, AdamWTest, testing::ValuesIn(kDTypes), DTypeTestName);

TEST_P(AdamWTest, ThreeStepsHaveTheBitsOfTheCpu) {
  ThreadPool pool(1);
  for (const int64_t n : {1, 8, 1029, 5000}) {
    std::vector<float> param = Normal(n, 1, 0.1f), m(param.size()), v(param.size());
    std::vector<float> expected = param, expected_m = m, expected_v = v;
    std::vector<float> copy_values(param.size());
    Matrix copy(dtype(), 1, n);
    for (int64_t step = 1; step <= 3; ++step) {
      const std::vector<float> grad = Normal(n, static_cast<uint32_t>(step), 3000);
      AdamWParams params{.lr = 1e-3f, .weight_decay = 0.1f, .step = step};
      const StepControl control = NormOf(grad, 4096, 1);
      params.grad_multiplier = control.grad_multiplier;
      AdamWStep(params, expected.data(), expected_m.data(), expected_v.data(), grad.data(), n, pool);
      params.grad_multiplier = NAN;  // the device takes it from `control`
      ASSERT_EQ(AdamW(params, &control, param.data(), m.data(), v.data(), grad.data(), n, dtype(), copy.view.data, {}),
                cudaSuccess);
      ExpectSameFloats(param, expected, "parameters");
      ExpectSameFloats(m, expected_m, "first moment");
      ExpectSameFloats(v, expected_v, "second moment");
    }
    Matrix rounded(dtype(), 1, n);
    rounded.Write(expected);
    EXPECT_EQ(copy.Read(), rounded.Read());
  }
}

TEST_P(AdamWTest, ANonFiniteStepChangesNothing) {
  const int64_t n = 33;
  std::vector<float> param = Normal(n, 1, 1), m = Normal(n, 2, 1), v(param.size(), 0.5f), grad = Normal(n, 3, 1);
  const std::vector<float> before = param, m_before = m, v_before = v;
  grad[20] = std::numeric_limits<float>::infinity();
  const StepControl control = NormOf(grad, 1, 1);
  const Matrix copy = Make(1, n, 9), copy_before = Copy(copy);
  ASSERT_EQ(AdamW({.lr = 1}, &control, param.data(), m.data(), v.data(), grad.data(), n, dtype(), copy.view.data, {}),
            cudaSuccess);
  EXPECT_EQ(param, before);
  EXPECT_EQ(m, m_before);
  EXPECT_EQ(v, v_before);
  ExpectSameBytes(copy, copy_before, "copy");
}

}  // namespace
}  // namespace lockstep::cuda
