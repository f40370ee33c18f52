// Attention's backward, compiled for the CPU: FP32 against the CPU's matched operation, bit for bit; 16-bit against the
// reference within what rounding weights and score gradients costs. And the states that forward is made of.
#include <limits>

#include "engine/kernels/cuda/attention_state.cuh"
#include "engine/kernels/cuda/attention_test_util.h"

namespace lockstep::cuda {
namespace {

class AttentionBackwardTest : public KernelTest {};
INSTANTIATE_TEST_SUITE_P(DTypes, AttentionBackwardTest, testing::Values(DType::kF16, DType::kBF16), DTypeTestName);

struct Gradients {
  explicit Gradients(const PackedCase& c)
      : d_q(AlignedMatrix(c.dtype, c.tokens(), c.wide)),
        d_k(AlignedMatrix(c.dtype, c.tokens(), c.narrow)),
        d_v(AlignedMatrix(c.dtype, c.tokens(), c.narrow)) {}
  Matrix d_q, d_k, d_v;
};

void ExpectSameGradients(const Gradients& got, const Gradients& expected, const std::string& where) {
  ExpectSameBytes(got.d_q, expected.d_q, where + " d_q");
  ExpectSameBytes(got.d_k, expected.d_k, where + " d_k");
  ExpectSameBytes(got.d_v, expected.d_v, where + " d_v");
}

struct BackwardCase : PackedCase {
  BackwardCase(const AttentionShape& shape, DType dtype, const std::vector<int32_t>& lengths)
      : PackedCase(shape, dtype, lengths), d_out(AlignedMatrix(dtype, tokens(), wide, 4)) {}

  Gradients Backward(Numerics numerics = Numerics::kMatched) const {
    Gradients g(*this);
    std::vector<float> scratch(static_cast<size_t>(AttentionBackwardScratch(shape, tokens())),
                               std::numeric_limits<float>::quiet_NaN());
    EXPECT_EQ(AttentionPackedBackward(shape, d_out.view, q.view, k.view, v.view, out.view, lse.view, cu.data(),
                                      static_cast<int64_t>(lengths.size()), longest, numerics, g.d_q.view, g.d_k.view,
                                      g.d_v.view, scratch.data(), {}),
              cudaSuccess);
    return g;
  }
  Gradients Backward(Ops& ops) const {
    Gradients g(*this);
    ops.AttentionPackedBackward(shape, d_out.view, q.view, k.view, v.view, out.view, lse.view, cu, g.d_q.view,
                                g.d_k.view, g.d_v.view);
    return g;
  }

  const Matrix d_out;
};

struct Sizes {
  int64_t kv_heads, group, e;
  std::vector<int32_t> lengths;
};
const Sizes kSizes[] = {
    {2, 2, 16, {1, 0, 65}}, {1, 7, 32, {33, 20}}, {2, 1, 64, {130}}, {1, 3, 96, {17, 70}}, {1, 4, 128, {40, 1, 64}},
};

TEST_P(AttentionBackwardTest, GradientsAreWithinTheirRoundings) {
  for (const Sizes& sizes : kSizes) {
    const BackwardCase c(ShapeOf(sizes.kv_heads, sizes.group, sizes.e), dtype(), sizes.lengths);
    reference_->AttentionPacked(c.shape, c.q.view, c.k.view, c.v.view, c.cu, c.out.view, c.lse.view);
    const Gradients truth = c.Backward(*reference_);
    for (const Numerics numerics : {Numerics::kMatched, Numerics::kNative}) {
      const Gradients got = c.Backward(numerics);
      // FP32's roundings; two factors rounded to the storage type, whose errors add up as the terms do.
      const double roundings =
          static_cast<double>(4 * (c.shape.head_dim + c.longest) + 64) + 4 * HalfStep(dtype()) * 0x1p24;
      ExpectClose({dtype(), got.d_q.Read()}, {dtype(), truth.d_q.Read()}, roundings, c.name() + " d_q", 1.0);
      ExpectClose({dtype(), got.d_k.Read()}, {dtype(), truth.d_k.Read()}, roundings, c.name() + " d_k", 1.0);
      ExpectClose({dtype(), got.d_v.Read()}, {dtype(), truth.d_v.Read()}, roundings, c.name() + " d_v", 1.0);
    }
  }
}

TEST(AttentionBackwardF32Test, HasTheBitsOfTheCpu) {
  const auto cpu = MakeCpuOps(Numerics::kMatched, 1);
  for (const Sizes& sizes : kSizes) {
    const BackwardCase c(ShapeOf(sizes.kv_heads, sizes.group, sizes.e), DType::kF32, sizes.lengths);
    cpu->AttentionPacked(c.shape, c.q.view, c.k.view, c.v.view, c.cu, c.out.view, c.lse.view);
    const Gradients expected = c.Backward(*cpu), got = c.Backward();
    ExpectSameGradients(got, expected, c.name());
  }
  const BackwardCase c(ShapeOf(1, 2, 16), DType::kF32, {7, 130});
  c.Run();
  const Gradients expected = c.Backward(*cpu);
  InEveryOrder([&] { ExpectSameGradients(c.Backward(), expected, c.name()); });
}

TEST_P(AttentionBackwardTest, NoOrderOfTurnsChangesABit) {
  const BackwardCase c(ShapeOf(2, 3, 32), dtype(), {70, 9});
  c.Run();
  const Gradients expected = c.Backward();
  InEveryOrder([&] { ExpectSameGradients(c.Backward(), expected, c.name()); });
}

TEST(AttentionStateTest, AnEmptyStateChangesNoBit) {
  const SoftmaxState some = {-3.25f, 7.123456f};
  SoftmaxState state;
  MergeFactors factors = Merge<MatchedExponential>(state, some);
  EXPECT_EQ(state.max, some.max);
  EXPECT_EQ(state.sum, some.sum);
  EXPECT_EQ(MergeValues(0.0f, 1.2345678f, factors), 1.2345678f);
  factors = Merge<MatchedExponential>(state, SoftmaxState{});
  EXPECT_EQ(state.max, some.max);
  EXPECT_EQ(state.sum, some.sum);
  EXPECT_EQ(MergeValues(1.2345678f, 0.0f, factors), 1.2345678f);
  EXPECT_EQ(Extend<MatchedExponential>(state, kNoScore), 1.0f);
  EXPECT_EQ(state.sum, some.sum);
  SoftmaxState none;
  EXPECT_EQ(Extend<NativeExponential>(none, kNoScore), 0.0f);
  Merge<NativeExponential>(none, SoftmaxState{});
  EXPECT_EQ(none.sum, 0.0f);
}

TEST(AttentionStateTest, MergedStatesAreThoseOfAllKeys) {
  SoftmaxState all, first, second;
  const float scores[] = {1.5f, -2.0f, 0.25f, 9.0f, 3.0f, -1.0f};
  for (int i = 0; i < 6; ++i) {
    for (SoftmaxState* state : {&all, i < 3 ? &first : &second}) {
      Extend<MatchedExponential>(*state, scores[i]);
      state->sum += Exp(scores[i] - state->max);
    }
  }
  Merge<MatchedExponential>(first, second);
  EXPECT_EQ(first.max, all.max);
  EXPECT_NEAR(first.sum, all.sum, 8 * 0x1p-24 * all.sum);
}

TEST(AttentionStateTest, TheNativeExponentialIsCloseToExp) {
  for (int i = 0; i <= 20000; ++i) {
    const float x = -87.0f + static_cast<float>(i) * 87.5f / 20000;
    const double expected = std::exp(static_cast<double>(x));
    ASSERT_NEAR(NativeExponential::Of(x), expected, (0x1p-22 + std::abs(x) * 0x1p-23) * expected) << x;
  }
  EXPECT_EQ(NativeExponential::Of(0.0f), 1.0f);
  EXPECT_EQ(NativeExponential::Of(-88.0f), 0.0f);
  EXPECT_EQ(NativeExponential::Of(kNoScore), 0.0f);
  EXPECT_TRUE(std::isnan(NativeExponential::Of(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace
}  // namespace lockstep::cuda
