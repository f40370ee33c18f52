// The matched matrix products in emulation. FP32: the CPU's bits. FP16 and BF16: the emulated tensor core's chain, in
// slices, is written down here once more and compared bit for bit; its distance to the exact sum is bounded; and a
// row's bits do not depend on the number of rows, its place among them, or the tile.
#include "engine/kernels/cuda/gemm.h"

#include <bit>
#include <cmath>
#include <limits>

#include "engine/kernels/cuda/emulation_test_util.h"

namespace lockstep::cuda {
namespace {

constexpr GemmTile kTiles[] = {GemmTile::kSkinny, GemmTile::k64, GemmTile::k128};

// Rows at multiples of 16 bytes, so that cp.async is taken; what lies between them is NaN.
struct AlignedMatrix {
  AlignedMatrix(DType dtype, int64_t rows, int64_t cols, uint32_t seed, float sigma = 1.0f)
      : AlignedMatrix(Matrix(dtype, rows, cols, seed, sigma)) {}
  explicit AlignedMatrix(const Matrix& from)
      : stride((from.view.cols + 7) / 8 * 8 + 8),
        buffer(static_cast<size_t>(std::max<int64_t>(1, from.view.rows) * stride) * DTypeSize(from.view.dtype)),
        view(buffer.data(), from.view.dtype, from.view.rows, from.view.cols, stride) {
    std::memset(buffer.data(), 0xFF, buffer.bytes());
    for (int64_t r = 0; r < view.rows; ++r) {
      std::memcpy(view.Row(r), from.view.Row(r), static_cast<size_t>(view.cols) * DTypeSize(view.dtype));
    }
  }
  int64_t stride;
  Buffer buffer;
  Tensor view;
};

std::vector<float> Values(const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.rows * tensor.cols));
  for (int64_t r = 0; r < tensor.rows; ++r) {
    ConvertToFloat(tensor.dtype, tensor.Row(r), values.data() + r * tensor.cols, static_cast<size_t>(tensor.cols));
  }
  return values;
}

// out[j][i] of sum_r a(r, i) b(r, j): chains of `slice`, where these are several added in ascending order to 0.
template <typename A, typename B>
std::vector<float> Chains(int64_t rows, int64_t cols, int64_t reduction, int64_t slice, A&& a, B&& b) {
  std::vector<float> out;
  for (int64_t j = 0; j < rows; ++j) {
    for (int64_t i = 0; i < cols; ++i) {
      float total = 0;
      for (int64_t first = 0; first < std::max<int64_t>(1, reduction); first += slice) {
        float chain = 0;
        for (int64_t r = first; r < std::min(reduction, first + slice); ++r) chain = std::fma(a(r, i), b(r, j), chain);
        total = slice >= reduction ? chain : total + chain;
      }
      out.push_back(total);
    }
  }
  return out;
}

std::vector<float> LinearChains(const Tensor& x, const Tensor& w) {
  const std::vector<float> left = Values(w), right = Values(x);
  const int64_t k = x.cols, slice = x.dtype == DType::kF32 ? k + 1 : GemmSliceLength(w.rows, k);
  const auto a = [&](int64_t r, int64_t i) { return left[static_cast<size_t>(i * k + r)]; };
  const auto b = [&](int64_t r, int64_t j) { return right[static_cast<size_t>(j * k + r)]; };
  return Chains(x.rows, w.rows, k, slice, a, b);
}

void ExpectBits(const std::vector<float>& got, const std::vector<float>& expected, const std::string& where) {
  ASSERT_EQ(got.size(), expected.size()) << where;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(expected[i]))
        << where << " element " << i << ": " << got[i] << " and " << expected[i];
  }
}

class GemmTest : public KernelTest {
 protected:
  std::vector<float> Round(std::vector<float> values) const {
    for (float& value : values) value = RoundTo(dtype(), value);
    return values;
  }
  bool is_float() const { return dtype() == DType::kF32; }
};
INSTANTIATE_TEST_SUITE_P(DTypes, GemmTest, testing::ValuesIn(kDTypes), DTypeTestName);

TEST(GemmSliceTest, SlicesDependOnTheWeightAloneAndCoverIt) {
  EXPECT_EQ(GemmSliceLength(896, 896), 256);
  EXPECT_EQ(GemmSliceLength(896, 4864), 640);
  EXPECT_GE(GemmSliceLength(9728, 896), 896);
  EXPECT_EQ(GemmSliceLength(1, 1), 64);
  for (const int64_t n : {1, 100, 4095, 4096, 200000}) {
    for (int64_t k = 0; k < 9000; k += 37) {
      const int64_t slice = GemmSliceLength(n, k);
      ASSERT_EQ(slice % 64, 0);
      ASSERT_GT(slice, 0);
      ASSERT_LE((k + slice - 1) / slice, n < 4096 ? 8 : 1);
    }
  }
}

// Tails of every size in i, j and k, with and without 16-byte rows, two and more slices, every tile.
struct Sizes {
  int64_t rows, n, k;
};
constexpr Sizes kSizes[] = {{1, 1, 1},     {3, 17, 40},    {9, 70, 64}, {33, 24, 330},
                            {20, 40, 530}, {70, 130, 130}, {2, 16, 0}};

TEST_P(GemmTest, LinearIsTheChainOfItsContractInEveryTile) {
  for (const auto [rows, n, k] : kSizes) {
    const Matrix x = Make(rows, k, 1), w = Make(n, k, 2);
    const AlignedMatrix aligned_x(x), aligned_w(w);
    const std::vector<float> expected = LinearChains(x.view, w.view);
    for (const GemmTile tile : kTiles) {
      if (is_float() && tile != GemmTile::k64) continue;
      const auto gemm = MakeMatchedGemm(tile);
      const std::string where = std::to_string(rows) + " x " + std::to_string(n) + " x " + std::to_string(k) +
                                " tile " + std::to_string(static_cast<int>(tile));
      const Matrix out(DType::kF32, rows, n, 3), stored(dtype(), rows, n, 4);
      const Matrix untouched = Copy(stored);
      ASSERT_EQ(gemm->Linear(x.view, w.view, {}, {}, out.view, {}), cudaSuccess);
      ExpectBits(out.Read(), expected, where);
      ASSERT_EQ(gemm->Linear(aligned_x.view, aligned_w.view, {}, {}, stored.view, {}), cudaSuccess);
      ExpectBits(stored.Read(), Round(expected), where + " aligned");
      // The bytes between the rows stay.
      Matrix filled = Copy(untouched);
      filled.Write(stored.Read());
      ExpectSameBytes(stored, filled, where + " padding");
    }
  }
}

TEST_P(GemmTest, NoOrderOfThreadsChangesLinear) {
  const AlignedMatrix x(dtype(), 10, 330, 1), w(dtype(), 40, 330, 2);
  const std::vector<float> expected = LinearChains(x.view, w.view);
  InEveryOrder([&] {
    for (const GemmTile tile : kTiles) {
      const Matrix out(DType::kF32, 10, 40);
      ASSERT_EQ(MakeMatchedGemm(tile)->Linear(x.view, w.view, {}, {}, out.view, {}), cudaSuccess);
      ExpectBits(out.Read(), expected, "tile " + std::to_string(static_cast<int>(tile)));
    }
  });
}

TEST_P(GemmTest, LinearHasTheBitsOfTheCpuInFp32AndIsAsExactInSixteenBits) {
  const int64_t rows = 5, n = 37, k = 300;
  const Matrix x = Make(rows, k, 1), w = Make(n, k, 2), bias = Make(1, n, 3), residual = Make(rows, n, 4);
  const auto gemm = MakeMatchedGemm();
  for (const bool with_bias : {false, true}) {
    for (const bool with_residual : {false, true}) {
      const Tensor no_tensor, &b = with_bias ? bias.view : no_tensor;
      const Matrix out = Copy(residual), expected = Copy(residual);
      ASSERT_EQ(gemm->Linear(x.view, w.view, b, with_residual ? out.view : no_tensor, out.view, {}), cudaSuccess);
      cpu_->Linear(x.view, lockstep::Pack(w), b, with_residual ? expected.view : no_tensor, expected.view);
      if (is_float()) {
        ExpectSameBytes(out, expected, "linear");
      } else {
        // Sums of k terms in another order: at most k roundings of the largest partial sum, here below 100; with a
        // residual the first store may fall to the other side, which is a step of the product.
        const double steps = with_residual ? StoreStep(dtype(), 64) / 0x1p-24 : 0;
        ExpectClose({dtype(), out.Read()}, {dtype(), expected.Read()}, k + steps, "linear", 100);
      }
    }
  }
}

TEST_P(GemmTest, BiasAndResidualAreAddedWhereOpsSays) {
  const int64_t rows = 9, n = 50, k = 130;
  const AlignedMatrix x(dtype(), rows, k, 1), w(dtype(), n, k, 2);
  const Matrix bias = Make(1, n, 3), residual = Make(rows, n, 4), wide_residual(DType::kF32, rows, n, 5);
  std::vector<float> sums = LinearChains(x.view, w.view);
  const std::vector<float> addend = bias.Read(), before = residual.Read(), wide_before = wide_residual.Read();
  std::vector<float> expected = sums, wide = sums;
  for (size_t i = 0; i < sums.size(); ++i) {
    const float sum = sums[i] + addend[i % static_cast<size_t>(n)];
    expected[i] = RoundTo(dtype(), RoundTo(dtype(), sum) + before[i]);
    wide[i] = sum + wide_before[i];
  }
  for (const GemmTile tile : kTiles) {
    const Matrix in_place = Copy(residual), out(DType::kF32, rows, n);
    ASSERT_EQ(MakeMatchedGemm(tile)->Linear(x.view, w.view, bias.view, in_place.view, in_place.view, {}), cudaSuccess);
    ExpectBits(in_place.Read(), expected, "residual");
    ASSERT_EQ(MakeMatchedGemm(tile)->Linear(x.view, w.view, bias.view, wide_residual.view, out.view, {}), cudaSuccess);
    ExpectBits(out.Read(), wide, "residual in FP32");
  }
}

// Values over the whole range of the dtype, with cancellation, subnormals, zeros of both signs and infinities: every
// other order of sums would give other bits.
std::vector<float> Adversarial(DType dtype, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    const int exponent = static_cast<int>(random() % 24) - 14;
    const float magnitude = std::ldexp(1.0f + static_cast<float>(random() % 1024) / 1024, exponent);
    values[i] = random() % 2 == 0 ? magnitude : -magnitude;
    if (random() % 50 == 0) values[i] = random() % 2 == 0 ? 0.0f : -0.0f;
    if (random() % 50 == 0) values[i] = dtype == DType::kF16 ? 0x1p-24f : 0x1p-133f;
    if (i % 3 == 2) values[i] = -values[i - 2];
  }
  return values;
}

TEST_P(GemmTest, ARowsBitsDependOnNeitherItsPlaceNorTheOthersNorTheTile) {
  const int64_t n = 40, k = 600;  // four slices
  Matrix w(dtype(), n, k), row(dtype(), 1, k);
  w.Write(Adversarial(dtype(), n * k, 1));
  row.Write(Adversarial(dtype(), k, 2));
  const AlignedMatrix weight(w);
  Matrix alone(DType::kF32, 1, n);
  ASSERT_EQ(MakeMatchedGemm()->Linear(row.view, weight.view, {}, {}, alone.view, {}), cudaSuccess);
  ExpectBits(alone.Read(), LinearChains(row.view, w.view), "alone");
  for (const int64_t rows : {2, 9, 31, 70}) {
    for (const int64_t at : {int64_t{0}, rows / 2, rows - 1}) {
      Matrix x(dtype(), rows, k);
      std::vector<float> values = Adversarial(dtype(), rows * k, 3);
      values[0] = std::numeric_limits<float>::infinity();  // a neighbour's, unless row 0 is the row itself
      values[static_cast<size_t>(rows * k - 1)] = std::numeric_limits<float>::quiet_NaN();
      const std::vector<float> own = row.Read();
      std::copy(own.begin(), own.end(), values.begin() + at * k);
      x.Write(values);
      const AlignedMatrix batch(x);
      for (const GemmTile tile : {GemmTile::kAutomatic, GemmTile::kSkinny, GemmTile::k64, GemmTile::k128}) {
        if (rows == 70 && tile == GemmTile::kSkinny && at != 0) continue;  // slow
        const Matrix out(DType::kF32, rows, n);
        ASSERT_EQ(MakeMatchedGemm(tile)->Linear(batch.view, weight.view, {}, {}, out.view, {}), cudaSuccess);
        const std::vector<float> all = out.Read();
        ExpectBits({all.begin() + at * n, all.begin() + (at + 1) * n}, alone.Read(),
                   std::to_string(rows) + " rows, row " + std::to_string(at));
      }
    }
  }
}

TEST_P(GemmTest, ColumnsInChunksHaveTheBitsOfTheWhole) {
  const int64_t rows = 2, n = 4100, k = 256, begin = 4077;  // the last chunk alone would have two slices
  EXPECT_LT(GemmSliceLength(n - begin, k), k);
  const AlignedMatrix x(dtype(), rows, k, 1), w(dtype(), n, k, 2);
  const Matrix whole(DType::kF32, rows, n);
  ASSERT_EQ(MakeMatchedGemm()->Linear(x.view, w.view, {}, {}, whole.view, {}), cudaSuccess);
  for (const GemmTile tile : kTiles) {
    const Matrix chunk(DType::kF32, rows, n - begin);
    ASSERT_EQ(MakeMatchedGemm(tile)->LinearColumns(x.view, w.view, begin, chunk.view, {}), cudaSuccess);
    ExpectBits(chunk.Read(), Values(whole.view.Cols(begin, n - begin)), "chunk");
  }
}

TEST_P(GemmTest, BackwardInputIsOneChainOverTheOutputs) {
  for (const auto [rows, n, k] : kSizes) {
    const Matrix d_out = Make(rows, n, 1), w = Make(n, k, 2), start = Make(rows, k, 3);
    const AlignedMatrix aligned_d_out(d_out), aligned_w(w);
    const std::vector<float> left = w.Read(), right = d_out.Read();
    const auto a = [&, k = k](int64_t r, int64_t i) { return left[static_cast<size_t>(r * k + i)]; };
    const auto b = [&, n = n](int64_t r, int64_t j) { return right[static_cast<size_t>(j * n + r)]; };
    const std::vector<float> sums = Chains(rows, k, n, n + 1, a, b);
    std::vector<float> added = start.Read();
    for (size_t i = 0; i < added.size(); ++i) added[i] += sums[i];
    for (const GemmTile tile : {GemmTile::k64, GemmTile::k128}) {
      const Matrix d_x = Copy(start), accumulated = Copy(start);
      const auto gemm = MakeMatchedGemm(tile);
      ASSERT_EQ(gemm->LinearBackwardInput(d_out.view, w.view, d_x.view, false, {}), cudaSuccess);
      ASSERT_EQ(gemm->LinearBackwardInput(aligned_d_out.view, aligned_w.view, accumulated.view, true, {}), cudaSuccess);
      ExpectBits(d_x.Read(), Round(sums), "input's gradient");
      ExpectBits(accumulated.Read(), Round(added), "input's gradient, added");
    }
    if (is_float() && k > 0) {
      const Matrix expected = Copy(start), got = Copy(start);
      cpu_->LinearBackwardInput(d_out.view, lockstep::Pack(w), expected.view, true);
      ASSERT_EQ(MakeMatchedGemm()->LinearBackwardInput(d_out.view, w.view, got.view, true, {}), cudaSuccess);
      ExpectSameBytes(got, expected, "the CPU's gradient");
    }
  }
}

TEST_P(GemmTest, BackwardWeightAddsOneChainOverTheRowsAndTheBiasItsColumnSums) {
  for (const auto [rows, n, k] : {Sizes{1, 1, 1}, Sizes{3, 17, 40}, Sizes{200, 70, 24}, Sizes{70, 130, 130}}) {
    const Matrix d_out = Make(rows, n, 1), x = Make(rows, k, 2);
    const Matrix d_w(DType::kF32, n, k, 3), d_bias(DType::kF32, 1, n, 4);
    const AlignedMatrix aligned_d_out(d_out), aligned_x(x);
    const std::vector<float> left = x.Read(), right = d_out.Read();
    const auto a = [&, k = k](int64_t r, int64_t i) { return left[static_cast<size_t>(r * k + i)]; };
    const auto b = [&, n = n](int64_t r, int64_t j) { return right[static_cast<size_t>(r * n + j)]; };
    std::vector<float> expected = d_w.Read();
    const std::vector<float> sums = Chains(n, k, rows, rows + 1, a, b);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += sums[i];
    const Matrix cpu_weight = Copy(d_w), cpu_bias = Copy(d_bias);
    cpu_->LinearBackwardWeight(d_out.view, x.view, cpu_weight.view, cpu_bias.view);
    for (const GemmTile tile : {GemmTile::k64, GemmTile::k128}) {
      const Matrix weight = Copy(d_w), other_weight = Copy(d_w), bias = Copy(d_bias);
      const auto gemm = MakeMatchedGemm(tile);
      ASSERT_EQ(gemm->LinearBackwardWeight(d_out.view, x.view, weight.view, bias.view, {}), cudaSuccess);
      ASSERT_EQ(gemm->LinearBackwardWeight(aligned_d_out.view, aligned_x.view, other_weight.view, {}, {}), cudaSuccess);
      ExpectBits(weight.Read(), expected, "weight's gradient");
      ExpectSameBytes(weight, other_weight, "aligned or not");
      ExpectSameBytes(bias, cpu_bias, "bias's gradient");
      ExpectSameBytes(weight, cpu_weight, "weight's gradient of the CPU");
    }
  }
}

struct ExpertsCase {
  std::vector<int32_t> counts;
  int64_t padding;  // rows beyond the last expert's
};

TEST_P(GemmTest, ExpertsHaveTheBitsOfTheirOwnLinear) {
  const int64_t n = 18, k = 260;
  for (const auto& [counts, padding] :
       {ExpertsCase{{0, 3, 0, 66, 1, 0}, 0}, ExpertsCase{{5}, 2}, ExpertsCase{{0, 0}, 3}, ExpertsCase{{0, 2}, 60}}) {
    const auto num_experts = static_cast<int64_t>(counts.size());
    const std::vector<int32_t> offsets = CuSeqlens(counts);
    const int64_t used = offsets.back(), rows = used + padding;
    const ExpertRows experts = {offsets.data(), num_experts};
    const AlignedMatrix x(dtype(), rows, k, 1), w(dtype(), num_experts * n, k, 2), d_out(dtype(), rows, n, 3);
    for (const GemmTile tile : kTiles) {
      const auto gemm = MakeMatchedGemm(tile);
      const Matrix out = Make(rows, n, 4), d_x = Make(rows, k, 5), d_w(DType::kF32, num_experts * n, k, 6);
      const Matrix expected = Copy(out), expected_d_x = Copy(d_x), expected_d_w = Copy(d_w);
      ASSERT_EQ(gemm->GroupedLinear(x.view, w.view, experts, out.view, {}), cudaSuccess);
      ASSERT_EQ(gemm->GroupedLinearBackwardInput(d_out.view, w.view, experts, d_x.view, true, {}), cudaSuccess);
      ASSERT_EQ(gemm->GroupedLinearBackwardWeight(d_out.view, x.view, experts, d_w.view, {}), cudaSuccess);
      const auto plain = MakeMatchedGemm(GemmTile::k64);
      for (int64_t e = 0; e < num_experts; ++e) {
        const int64_t begin = offsets[static_cast<size_t>(e)], count = counts[static_cast<size_t>(e)];
        if (count == 0) continue;
        const Tensor own_x = x.view.Rows(begin, count), own_w = w.view.Rows(e * n, n),
                     own_d_out = d_out.view.Rows(begin, count);
        ASSERT_EQ(plain->Linear(own_x, own_w, {}, {}, expected.view.Rows(begin, count), {}), cudaSuccess);
        ASSERT_EQ(plain->LinearBackwardInput(own_d_out, own_w, expected_d_x.view.Rows(begin, count), true, {}),
                  cudaSuccess);
        ASSERT_EQ(plain->LinearBackwardWeight(own_d_out, own_x, expected_d_w.view.Rows(e * n, n), {}, {}), cudaSuccess);
      }
      ExpectSameBytes(out, expected, "experts");
      ExpectSameBytes(d_x, expected_d_x, "experts' input gradient");
      ExpectSameBytes(d_w, expected_d_w, "experts' weight gradient");
    }
  }
}

TEST_P(GemmTest, ManyTilesAreAllVisited) {
  // More slots than a raster group, and more than one tile of outputs.
  const int64_t rows = 64 * 9 + 5, n = 70, k = 8;
  const AlignedMatrix x(dtype(), rows, k, 1), w(dtype(), n, k, 2);
  const Matrix out(DType::kF32, rows, n);
  ASSERT_EQ(MakeMatchedGemm(GemmTile::k64)->Linear(x.view, w.view, {}, {}, out.view, {}), cudaSuccess);
  ExpectBits(out.Read(), LinearChains(x.view, w.view), "many tiles");
}

TEST_P(GemmTest, NoRowsAreNoWork) {
  const Matrix x = Make(0, 40, 1), w = Make(24, 40, 2), out = Make(0, 24, 3);
  const Matrix d_w(DType::kF32, 24, 40, 4), start = Copy(d_w);
  const auto gemm = MakeMatchedGemm();
  EXPECT_EQ(gemm->Linear(x.view, w.view, {}, {}, out.view, {}), cudaSuccess);
  EXPECT_EQ(gemm->LinearBackwardWeight(out.view, x.view, d_w.view, {}, {}), cudaSuccess);
  EXPECT_EQ(d_w.Read(), start.Read());
}

TEST(GemmDeathTest, AWrongCallIsSaidSo) {
  const Matrix x(DType::kF16, 2, 24), w(DType::kF16, 10, 24), out(DType::kF16, 2, 11), other(DType::kBF16, 2, 10);
  const auto gemm = MakeMatchedGemm();
  EXPECT_DEATH(static_cast<void>(gemm->Linear(x.view, w.view, {}, {}, out.view, {})), "shapes of a linear layer");
  EXPECT_DEATH(static_cast<void>(gemm->Linear(x.view, w.view, {}, {}, other.view, {})), "as its operands or FP32");
  EXPECT_DEATH(static_cast<void>(gemm->GroupedLinear(x.view, w.view, {nullptr, 1}, other.view, {})), "offsets");
}

}  // namespace
}  // namespace lockstep::cuda
