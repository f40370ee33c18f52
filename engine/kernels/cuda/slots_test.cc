// Slots of a mixture of experts and the rows that move by them, compiled for the CPU, against plain loops and the CPU's
// matched operations: equal bits.
#include <algorithm>
#include <numeric>
#include <random>

#include "engine/kernels/cuda/emulation_test_util.h"
#include "engine/kernels/cuda/moe.h"

namespace lockstep::cuda {
namespace {

class SlotsTest : public KernelTest {};
INSTANTIATE_TEST_SUITE_P(DTypes, SlotsTest, testing::ValuesIn(kDTypes), DTypeTestName);

constexpr int64_t kCols[] = {1, 8, 13, 64, 259};

struct Slots {
  std::vector<int32_t> slots, slot_tokens;
  std::vector<float> slot_weights;
  std::vector<int32_t> offsets;
  bool operator==(const Slots&) const = default;
};

// k different experts of n a token, ascending; those in `without` are never chosen.
std::vector<int32_t> Experts(int64_t tokens, int64_t n, int64_t k, int64_t without) {
  std::mt19937 random(static_cast<unsigned>(tokens + n));
  std::vector<int32_t> experts, all(static_cast<size_t>(n - without));
  std::iota(all.begin(), all.end(), static_cast<int32_t>(without / 2));  // the unused are at both ends
  for (int64_t t = 0; t < tokens; ++t) {
    std::shuffle(all.begin(), all.end(), random);
    std::vector<int32_t> chosen(all.begin(), all.begin() + k);
    std::sort(chosen.begin(), chosen.end());
    experts.insert(experts.end(), chosen.begin(), chosen.end());
  }
  return experts;
}

// A stable sort of the pairs by expert.
Slots SlotsBySorting(const std::vector<int32_t>& experts, const std::vector<float>& weights, int64_t n, int64_t k) {
  std::vector<size_t> order(experts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return experts[a] < experts[b]; });
  Slots result = {std::vector<int32_t>(experts.size()), {}, {}, std::vector<int32_t>(static_cast<size_t>(n) + 1)};
  for (size_t slot = 0; slot < order.size(); ++slot) {
    result.slots[order[slot]] = static_cast<int32_t>(slot);
    result.slot_tokens.push_back(static_cast<int32_t>(static_cast<int64_t>(order[slot]) / k));
    result.slot_weights.push_back(weights[order[slot]]);
  }
  for (int64_t e = 0; e <= n; ++e) {
    result.offsets[static_cast<size_t>(e)] =
        static_cast<int32_t>(std::count_if(experts.begin(), experts.end(), [e](int32_t expert) { return expert < e; }));
  }
  return result;
}

Slots OnDevice(const std::vector<int32_t>& experts, const std::vector<float>& weights, int64_t n, int64_t k) {
  Slots result = {std::vector<int32_t>(experts.size(), -1), std::vector<int32_t>(experts.size(), -1),
                  std::vector<float>(experts.size(), -1), std::vector<int32_t>(static_cast<size_t>(n) + 1, -1)};
  EXPECT_EQ(
      AssignSlots(experts.data(), weights.data(), static_cast<int64_t>(experts.size()) / k, k, n, result.slots.data(),
                  result.slot_tokens.data(), result.slot_weights.data(), result.offsets.data(), {}),
      cudaSuccess);
  return result;
}

TEST(AssignSlotsTest, SortsThePairsByExpertThenByToken) {
  struct Case {
    int64_t tokens, n, k, without;
  };
  // One token, all experts of each, empty experts, more pairs than a block has threads, and than the small sort takes.
  for (const auto& [tokens, n, k, without] :
       {Case{0, 4, 2, 0}, Case{1, 1, 1, 0}, Case{1, 8, 2, 0}, Case{5, 6, 6, 0}, Case{33, 60, 4, 0}, Case{40, 16, 2, 9},
        Case{90, 3, 3, 0}, Case{131, 9, 2, 7}, Case{701, 7, 6, 0}}) {
    const std::vector<int32_t> experts = Experts(tokens, n, k, without);
    std::vector<float> weights(experts.size());
    std::iota(weights.begin(), weights.end(), 0.5f);
    const Slots expected = SlotsBySorting(experts, weights, n, k);
    InEveryOrder(
        [&] { EXPECT_EQ(OnDevice(experts, weights, n, k), expected) << tokens << " tokens, " << k << " of " << n; });
  }
}

TEST(AssignSlotsTest, AllTokensMayHaveOneExpert) {
  const std::vector<int32_t> experts(300, 2);
  const std::vector<float> weights(300, 1.0f);
  const Slots slots = OnDevice(experts, weights, 5, 1);
  EXPECT_EQ(slots, SlotsBySorting(experts, weights, 5, 1));
  EXPECT_EQ(slots.offsets, (std::vector<int32_t>{0, 0, 0, 300, 300, 300}));
}

TEST_P(SlotsTest, GatherRowsCopiesOrScales) {
  for (const int64_t cols : kCols) {
    const Matrix x = Make(11, cols, 1), scale(DType::kF32, 1, 26, 2);
    const std::vector<int32_t> rows = RandomIds(26, 11, 3);
    const Matrix copied(dtype(), 26, cols), scaled(dtype(), 26, cols);
    cpu_->GatherRows(x.view, rows, nullptr, copied.view);
    cpu_->GatherRows(x.view, rows, scale.view.As<float>(), scaled.view);
    InEveryOrder([&] {
      const Matrix a(dtype(), 26, cols), b(dtype(), 26, cols);
      ASSERT_EQ(GatherRows(x.view, rows.data(), nullptr, a.view, {}), cudaSuccess);
      ASSERT_EQ(GatherRows(x.view, rows.data(), scale.view.As<float>(), b.view, {}), cudaSuccess);
      ExpectSameBytes(a, copied, "copies of " + std::to_string(cols));
      ExpectSameBytes(b, scaled, "scaled rows of " + std::to_string(cols));
    });
  }
}

TEST_P(SlotsTest, GatherRowsWithoutScaleKeepsEveryBit) {
  const Matrix x(dtype(), 3, 21), out(dtype(), 2, 21);
  auto* bytes = x.view.As<unsigned char>();
  for (size_t i = 0; i < x.buffer.bytes(); ++i) bytes[i] = static_cast<unsigned char>(i % 2 == 0 ? 0x01 + i : 0x7F);
  const int32_t rows[] = {2, 0};  // NaNs with payloads, signalling ones too
  ASSERT_EQ(GatherRows(x.view, rows, nullptr, out.view, {}), cudaSuccess);
  for (int64_t i = 0; i < 2; ++i) {
    EXPECT_EQ(std::memcmp(out.view.Row(i), x.view.Row(rows[i]), 21 * DTypeSize(dtype())), 0);
  }
}

TEST_P(SlotsTest, CombineRowsIsOneChainOverTheExpertsThenTheResidual) {
  for (const int64_t k : {1, 2, 8}) {
    for (const int64_t cols : kCols) {
      const int64_t tokens = 9;
      const Matrix x = Make(tokens * k, cols, 1), residual = Make(tokens, cols, 2),
                   weights(DType::kF32, 1, tokens * k, 3);
      std::vector<int32_t> slots(static_cast<size_t>(tokens * k));
      std::iota(slots.begin(), slots.end(), 0);
      std::shuffle(slots.begin(), slots.end(), std::mt19937(4));
      const float* given = weights.view.As<float>();
      const Matrix plain(dtype(), tokens, cols), added = Copy(residual);
      cpu_->CombineRows(x.view, slots, nullptr, {}, plain.view);
      cpu_->CombineRows(x.view, slots, given, added.view, added.view);
      InEveryOrder([&] {
        const Matrix a(dtype(), tokens, cols), b = Copy(residual);
        ASSERT_EQ(CombineRows(x.view, slots.data(), k, nullptr, {}, a.view, {}), cudaSuccess);
        ASSERT_EQ(CombineRows(x.view, slots.data(), k, given, b.view, b.view, {}), cudaSuccess);
        ExpectSameBytes(a, plain, "sums of " + std::to_string(cols));
        ExpectSameBytes(b, added, "weighted sums with residual of " + std::to_string(cols));
      });
    }
  }
}

TEST_P(SlotsTest, RowDotsHaveTheBitsOfTheCpuInAnyOrderOfRows) {
  for (const int64_t cols : kCols) {
    const int64_t rows = 37;
    const Matrix a = Make(rows, cols, 1), b = Make(rows, cols, 2);
    std::vector<float> expected(rows), expected_by_slot(rows);
    cpu_->RowDots(a.view, b.view, expected.data());
    std::vector<int32_t> slots(rows);
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), std::mt19937(4));
    for (size_t i = 0; i < slots.size(); ++i) expected_by_slot[i] = expected[static_cast<size_t>(slots[i])];
    InEveryOrder([&] {
      std::vector<float> dots(rows), by_slot(rows);
      ASSERT_EQ(RowDots(a.view, b.view, nullptr, rows, dots.data(), {}), cudaSuccess);
      ASSERT_EQ(RowDots(a.view, b.view, slots.data(), rows, by_slot.data(), {}), cudaSuccess);
      ExpectSameFloats(dots, expected, "dots of " + std::to_string(cols));
      ExpectSameFloats(by_slot, expected_by_slot, "dots in the order of the tokens");
    });
  }
}

// A lane's product that underflows is -0; the CPU's tail adds +0 to it.
TEST(RowDotsTest, TheSignOfAZeroIsTheCpus) {
  const auto cpu = MakeCpuOps(Numerics::kMatched, 1);
  Matrix a(DType::kF32, 2, 9), b(DType::kF32, 2, 9);
  std::vector<float> tiny(18, 1e-30f), negative(18, -1e-30f);
  a.Write(tiny);
  b.Write(negative);
  std::vector<float> expected(2), dots(2);
  for (const int64_t cols : {8, 9}) {
    cpu->RowDots(a.view.Cols(0, cols), b.view.Cols(0, cols), expected.data());
    ASSERT_EQ(RowDots(a.view.Cols(0, cols), b.view.Cols(0, cols), nullptr, 2, dots.data(), {}), cudaSuccess);
    ExpectSameFloats(dots, expected, "dots of " + std::to_string(cols));
  }
}

TEST(SlotsDeathTest, AWrongCallIsSaidSo) {
  const Matrix x(DType::kF16, 6, 8), out(DType::kF16, 4, 8), wide(DType::kF16, 6, 9);
  const int32_t slots[6] = {};
  EXPECT_DEATH(static_cast<void>(CombineRows(x.view, slots, 2, nullptr, {}, out.view, {})), "sum of K slots");
  EXPECT_DEATH(static_cast<void>(GatherRows(x.view, slots, nullptr, wide.view, {})), "columns");
  EXPECT_DEATH(static_cast<void>(RowDots(x.view, wide.view, nullptr, 6, nullptr, {})), "one shape");
  EXPECT_DEATH(static_cast<void>(RowDots(x.view, x.view, nullptr, 7, nullptr, {})), "more dots than rows");
}

}  // namespace
}  // namespace lockstep::cuda
