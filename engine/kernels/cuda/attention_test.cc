// Attention forward, compiled for the CPU: FP32 against the CPU's matched operation, bit for bit; 16-bit against the
// reference within what rounding the weights costs, and packed, tiles and decode against one another, bit for bit.
#include "engine/kernels/cuda/attention_test_util.h"

namespace lockstep::cuda {
namespace {

class AttentionTest : public KernelTest {};
INSTANTIATE_TEST_SUITE_P(DTypes, AttentionTest, testing::Values(DType::kF16, DType::kBF16), DTypeTestName);

// Rows of the packed case in any order, with their pages.
struct PagedCall {
  // Row i is position `rows[i].second` of sequence `rows[i].first`; a sequence of -1 is a padded row.
  PagedCall(const PackedCase& packed, const std::vector<std::pair<int32_t, int32_t>>& rows, uint32_t seed)
      : packed(packed),
        cache(packed.shape, packed.dtype, packed.lengths, seed),
        stride(packed.longest / kPageTokens + 3),
        table(packed.lengths.size() * static_cast<size_t>(stride), -1),
        q(AlignedMatrix(packed.dtype, static_cast<int64_t>(rows.size()), packed.wide)),
        out(AlignedMatrix(packed.dtype, static_cast<int64_t>(rows.size()), packed.wide)) {
    for (size_t s = 0; s < packed.lengths.size(); ++s) {
      std::copy(cache.pages[s].begin(), cache.pages[s].end(), table.begin() + static_cast<int64_t>(s) * stride);
    }
    for (const auto& [s, position] : rows) {
      const int64_t to = static_cast<int64_t>(sequence.size());
      if (s >= 0) std::memcpy(q.view.Row(to), packed.q.view.Row(packed.cu[static_cast<size_t>(s)] + position), Bytes());
      sequence.push_back(s);
      positions.push_back(s < 0 ? 1 << 29 : position);
      if (s >= 0) Write(static_cast<size_t>(s), position);
    }
  }

  // Keys and values up to this position, as a prefill and steps before it would have written them.
  void Write(size_t s, int32_t position) {
    const std::vector<PagedSequence> sequences = {{packed.cu[s], position + 1, 0, cache.pages[s]}};
    MakeCpuOps(Numerics::kMatched, 1)->WriteKv(packed.shape, packed.k.view, packed.v.view, sequences, cache.cache);
  }

  void Run(int64_t decode_rows, int64_t max_position, Numerics numerics = Numerics::kMatched) {
    const int64_t bytes = AttentionPagedScratchBytes(packed.shape, packed.dtype, decode_rows, max_position, numerics);
    Buffer scratch(static_cast<size_t>(std::max<int64_t>(bytes, 1)));
    std::memset(scratch.data(), 0xFF, scratch.bytes());
    Run(decode_rows, max_position, numerics, scratch.data());
  }
  void RunWithoutScratch(int64_t decode_rows, int64_t max_position) {
    Run(decode_rows, max_position, Numerics::kMatched, nullptr);
  }

  void ExpectPackedBits(const std::string& where) const {
    const std::vector<unsigned char> zeros(Bytes(), 0);
    for (size_t r = 0; r < sequence.size(); ++r) {
      const bool padded = sequence[r] < 0;
      const void* expected = padded ? static_cast<const void*>(zeros.data())
                                    : packed.out.view.Row(packed.cu[static_cast<size_t>(sequence[r])] + positions[r]);
      ASSERT_EQ(std::memcmp(out.view.Row(static_cast<int64_t>(r)), expected, Bytes()), 0)
          << packed.name() << ", " << where << ": row " << r << ", sequence " << sequence[r] << " position "
          << positions[r];
    }
  }

  size_t Bytes() const { return static_cast<size_t>(packed.wide) * DTypeSize(packed.dtype); }

  void Run(int64_t decode_rows, int64_t max_position, Numerics numerics, void* scratch) {
    std::memset(out.buffer.data(), 0xFF, out.buffer.bytes());
    const PagedView view = {table.data(),       stride,     sequence.data(), positions.data(), cache.cache.keys,
                            cache.cache.values, decode_rows};
    ASSERT_EQ(AttentionPaged(packed.shape, q.view, view, max_position, numerics, scratch, out.view, {}), cudaSuccess);
  }

  const PackedCase& packed;
  PageCache cache;
  const int64_t stride;
  std::vector<int32_t> table, sequence, positions;
  Matrix q, out;
};

std::vector<std::pair<int32_t, int32_t>> AllRows(const PackedCase& packed) {
  std::vector<std::pair<int32_t, int32_t>> rows;
  for (size_t s = 0; s < packed.lengths.size(); ++s) {
    for (int32_t p = 0; p < packed.lengths[s]; ++p) rows.emplace_back(static_cast<int32_t>(s), p);
  }
  return rows;
}

struct Sizes {
  int64_t kv_heads, group, e;
  std::vector<int32_t> lengths;
};
const Sizes kSizes[] = {
    {2, 2, 16, {1, 0, 65}}, {1, 7, 32, {33, 20}},     {2, 1, 64, {130}},
    {1, 3, 96, {17, 70}},   {1, 4, 128, {40, 1, 64}}, {1, 20, 16, {9, 5}},
};

TEST_P(AttentionTest, PackedIsWithinTheRoundingOfItsWeights) {
  for (const Sizes& sizes : kSizes) {
    const PackedCase c(ShapeOf(sizes.kv_heads, sizes.group, sizes.e), dtype(), sizes.lengths);
    const Matrix out = AlignedMatrix(dtype(), c.tokens(), c.wide), lse(DType::kF32, c.tokens(), c.shape.num_heads);
    reference_->AttentionPacked(c.shape, c.q.view, c.k.view, c.v.view, c.cu, out.view, lse.view);
    for (const Numerics numerics : {Numerics::kMatched, Numerics::kNative}) {
      c.Run(numerics);
      // FP32's roundings, scores of size 10 in exp; and half a step for each weight, relative to the largest value,
      // which is at most twice the largest output where a row has one key.
      const double roundings = static_cast<double>(4 * (c.shape.head_dim + c.longest) + 64);
      ExpectClose({dtype(), c.out.Read()}, {dtype(), out.Read()}, roundings + 2 * HalfStep(dtype()) * 0x1p24, c.name());
      ExpectClose({DType::kF32, c.lse.Read()}, {DType::kF32, lse.Read()}, roundings, c.name() + " lse");
    }
  }
}

TEST(AttentionF32Test, PackedAndPagedHaveTheBitsOfTheCpu) {
  const auto cpu = MakeCpuOps(Numerics::kMatched, 1);
  for (const Sizes& sizes : {Sizes{2, 2, 16, {1, 0, 65}}, Sizes{1, 3, 32, {140}}, Sizes{1, 1, 128, {129, 3}}}) {
    const PackedCase c(ShapeOf(sizes.kv_heads, sizes.group, sizes.e), DType::kF32, sizes.lengths);
    const Matrix out = AlignedMatrix(DType::kF32, c.tokens(), c.wide);
    const Matrix lse = AlignedMatrix(DType::kF32, c.tokens(), c.shape.num_heads);
    cpu->AttentionPacked(c.shape, c.q.view, c.k.view, c.v.view, c.cu, out.view, lse.view);
    c.Run();
    ExpectSameBytes(c.out, out, c.name());
    ExpectSameBytes(c.lse, lse, c.name() + " lse");
    std::vector<std::pair<int32_t, int32_t>> rows = {{-1, 0}};
    for (const auto& row : AllRows(c)) {
      if (row.second % 5 == 4 || row.second == 0) rows.push_back(row);
    }
    PagedCall paged(c, rows, 3);
    paged.RunWithoutScratch(2, c.longest);
    paged.ExpectPackedBits("paged");
  }
}

TEST(AttentionF32Test, NoOrderOfTurnsChangesABit) {
  const PackedCase c(ShapeOf(1, 2, 16), DType::kF32, {7, 130});
  c.Run();
  const Matrix out = AlignedCopy(c.out), lse = AlignedCopy(c.lse);
  InEveryOrder([&] {
    c.Run();
    ExpectSameBytes(c.out, out, c.name());
    ExpectSameBytes(c.lse, lse, c.name());
  });
}

// Lengths on both sides of a block, a split and several.
const std::vector<int32_t> kLengths = {530, 1, 64, 65, 256, 257, 20};

TEST_P(AttentionTest, DecodeHasTheBitsOfPackedAcrossSplits) {
  const PackedCase c(ShapeOf(1, 3, 32), dtype(), kLengths);
  c.Run();
  std::vector<std::pair<int32_t, int32_t>> rows = {{-1, 0}};
  for (int32_t s = 0; s < static_cast<int32_t>(kLengths.size()); ++s) {
    const int32_t last = kLengths[static_cast<size_t>(s)] - 1;
    for (const int32_t p : {last, last / 2, last - 15}) {
      if (p >= 0) rows.emplace_back(s, p);
    }
  }
  rows.emplace_back(-1, 0);
  PagedCall paged(c, rows, 5);
  const int64_t all = static_cast<int64_t>(rows.size());
  paged.Run(all, 529);  // split over keys
  paged.ExpectPackedBits("decode");
  paged.Run(all, 2000);  // a bound that no row reaches
  paged.ExpectPackedBits("decode with a loose bound");
  paged.Run(0, 529);
  paged.ExpectPackedBits("the same rows in tiles");
  paged.Run(all / 2, 529);
  paged.ExpectPackedBits("half of them in tiles");
}

TEST_P(AttentionTest, ManyDecodeRowsAreNotSplitAndHaveTheSameBits) {
  const PackedCase c(ShapeOf(8, 1, 16), dtype(), {300});
  c.Run();
  std::vector<std::pair<int32_t, int32_t>> rows;
  for (int32_t i = 0; i < 64; ++i) rows.emplace_back(0, 299 - i % 3);
  PagedCall paged(c, rows, 5);
  paged.RunWithoutScratch(64, 299);
  paged.ExpectPackedBits("decode of one split");
}

TEST_P(AttentionTest, PrefillHasTheBitsOfPackedForEveryChunking) {
  const PackedCase c(ShapeOf(2, 3, 64), dtype(), {150, 1, 70});
  c.Run();
  for (const int32_t chunk : {150, 64, 37}) {
    for (int32_t begin = 0; begin < 150; begin += chunk) {
      std::vector<std::pair<int32_t, int32_t>> rows;
      for (int32_t s = 0; s < 3; ++s) {
        for (int32_t p = begin; p < std::min(begin + chunk, c.lengths[static_cast<size_t>(s)]); ++p) {
          rows.emplace_back(s, p);
        }
        rows.emplace_back(-1, 0);
      }
      PagedCall paged(c, rows, static_cast<uint32_t>(chunk));
      paged.Run(0, 149);
      paged.ExpectPackedBits("chunks of " + std::to_string(chunk) + " at " + std::to_string(begin));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(AttentionTest, EveryHeadSizeAndGroupHasTheSameBitsInAllPaths) {
  for (const Sizes& sizes : kSizes) {
    const PackedCase c(ShapeOf(sizes.kv_heads, sizes.group, sizes.e), dtype(), sizes.lengths);
    c.Run();
    PagedCall paged(c, AllRows(c), 9);
    paged.Run(0, c.longest - 1);
    paged.ExpectPackedBits("tiles");
    paged.Run(c.tokens(), c.longest - 1);
    paged.ExpectPackedBits("decode");
  }
}

TEST_P(AttentionTest, BitsOfASequenceDoNotDependOnWhatItIsPackedWith) {
  const PackedCase all(ShapeOf(1, 7, 64), dtype(), {40, 3, 100});
  all.Run();
  for (size_t s = 0; s < all.lengths.size(); ++s) {
    const int64_t first = all.cu[s], count = all.lengths[s];
    const std::vector<int32_t> cu = {0, all.lengths[s]};
    const Matrix out = AlignedMatrix(dtype(), count, all.wide);
    ASSERT_EQ(
        AttentionPacked(all.shape, all.q.view.Rows(first, count), all.k.view.Rows(first, count),
                        all.v.view.Rows(first, count), cu.data(), 1, 3 * count, Numerics::kMatched, out.view, {}, {}),
        cudaSuccess);
    for (int64_t r = 0; r < count; ++r) {
      ASSERT_EQ(
          std::memcmp(out.view.Row(r), all.out.view.Row(first + r), static_cast<size_t>(all.wide) * DTypeSize(dtype())),
          0)
          << "sequence " << s << " row " << r;
    }
  }
}

TEST_P(AttentionTest, NativeDecodeIsCloseWhateverTheSplits) {
  const PackedCase c(ShapeOf(1, 2, 32), dtype(), {530});
  c.Run();
  PagedCall paged(c, {{0, 529}, {-1, 0}, {0, 300}}, 5);
  const double roundings = 4.0 * (32 + 530) + 64 + 2 * HalfStep(dtype()) * 0x1p24;
  for (const int64_t max_position : {529, 5000}) {
    for (const int64_t decode_rows : {0, 1, 3}) {
      paged.Run(decode_rows, max_position, Numerics::kNative);
      const std::vector<float> got = paged.out.Read(), truth = c.out.Read();
      for (const auto& [row, position] : {std::pair<int64_t, int64_t>{0, 529}, {2, 300}}) {
        const auto at = [&](const std::vector<float>& values, int64_t r) {
          return std::vector<float>(values.begin() + r * c.wide, values.begin() + (r + 1) * c.wide);
        };
        ExpectClose({dtype(), at(got, row)}, {dtype(), at(truth, position)}, roundings, "native decode", 1.0);
      }
      for (int64_t i = 0; i < c.wide; ++i) ASSERT_EQ(got[static_cast<size_t>(c.wide + i)], 0.0f);
    }
  }
}

TEST_P(AttentionTest, NoOrderOfTurnsChangesABit) {
  const PackedCase c(ShapeOf(1, 3, 32), dtype(), {70, 9});
  c.Run();
  const Matrix out = AlignedCopy(c.out), lse = AlignedCopy(c.lse);
  const PackedCase spread(ShapeOf(1, 3, 32), dtype(), {300});
  spread.Run();
  InEveryOrder([&] {
    c.Run();
    ExpectSameBytes(c.out, out, c.name());
    ExpectSameBytes(c.lse, lse, c.name());
    PagedCall paged(spread, {{0, 299}, {0, 5}, {0, 289}, {0, 290}, {0, 291}}, 5);
    paged.Run(2, 299);
    paged.ExpectPackedBits("paged");
  });
}

TEST_P(AttentionTest, AKeyThatIsNotFiniteIsNotSeenByEarlierRows) {
  const PackedCase c(ShapeOf(1, 2, 32), dtype(), {40}), bad(ShapeOf(1, 2, 32), dtype(), {40});
  c.Run();
  std::memset(bad.k.view.Row(20), 0xFF, static_cast<size_t>(bad.narrow) * DTypeSize(dtype()));
  bad.Run();
  const size_t bytes = static_cast<size_t>(c.wide) * DTypeSize(dtype());
  for (int64_t r = 0; r < 20; ++r) ASSERT_EQ(std::memcmp(bad.out.view.Row(r), c.out.view.Row(r), bytes), 0) << r;
  const std::vector<float> values = bad.out.Read();
  for (size_t i = static_cast<size_t>(20 * c.wide); i < values.size(); ++i) ASSERT_TRUE(std::isnan(values[i])) << i;
}

TEST(AttentionScratchTest, SufficesForFewerRowsAndPositions) {
  const AttentionShape shape = ShapeOf(2, 7, 64);
  for (const Numerics numerics : {Numerics::kMatched, Numerics::kNative}) {
    for (const int64_t rows : {1, 7, 100, 300}) {
      const int64_t most = AttentionPagedScratchBytes(shape, DType::kBF16, rows, 4000, numerics);
      for (int64_t fewer = 1; fewer <= rows; fewer += 3) {
        for (int64_t position = 1; position <= 4000; position += 61) {
          ASSERT_LE(AttentionPagedScratchBytes(shape, DType::kBF16, fewer, position, numerics), most);
        }
      }
    }
  }
}

TEST(AttentionSupportsTest, NamesTheHeadsItTakes) {
  for (const int64_t e : {16, 32, 64, 96, 128}) EXPECT_TRUE(AttentionSupports({14, 2, e, 1}));
  for (const int64_t e : {0, 8, 24, 80, 112, 256}) EXPECT_FALSE(AttentionSupports({14, 2, e, 1}));
  EXPECT_FALSE(AttentionSupports({14, 3, 64, 1}));
  EXPECT_FALSE(AttentionSupports({14, 0, 64, 1}));
  EXPECT_FALSE(AttentionSupports({0, 2, 64, 1}));
  EXPECT_TRUE(AttentionSupports({64, 1, 64, 1}));
  EXPECT_FALSE(AttentionSupports({65, 1, 64, 1}));
}

TEST(AttentionDeathTest, WrongCallsEndWithOneLine) {
  const PackedCase c(ShapeOf(1, 1, 16), DType::kF16, {3});
  const Matrix misaligned(DType::kF16, 3, 16);
  const auto call = [&](const AttentionShape& shape, const Tensor& q) {
    static_cast<void>(
        AttentionPacked(shape, q, c.k.view, c.v.view, c.cu.data(), 1, 3, Numerics::kMatched, c.out.view, {}, {}));
  };
  EXPECT_DEATH(call(c.shape, misaligned.view), "multiples of 16 bytes");
  EXPECT_DEATH(call(ShapeOf(1, 1, 24), c.q.view), "AttentionSupports");
}

}  // namespace
}  // namespace lockstep::cuda
