// The matched contract as equality of bits: paged and packed attention agree for every chunking, page order and batch;
// the sampler's log-prob is the learner's.
#include <cstring>
#include <memory>

#include "engine/kernels/ops_test_util.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// Rows of the packed batch, and its output.
struct Packed {
  Packed(const AttentionShape& shape, DType dtype, const std::vector<int32_t>& lengths, Ops& ops)
      : shape(shape),
        cu(CuSeqlens(lengths)),
        q(dtype, cu.back(), shape.num_heads * shape.head_dim, 1, 2.0f),
        k(dtype, cu.back(), shape.num_kv_heads * shape.head_dim, 2),
        v(dtype, cu.back(), shape.num_kv_heads * shape.head_dim, 3),
        out(dtype, cu.back(), shape.num_heads * shape.head_dim),
        lse(DType::kF32, cu.back(), shape.num_heads) {
    ops.AttentionPacked(shape, q.view, k.view, v.view, cu, out.view, lse.view);
  }
  const AttentionShape shape;
  const std::vector<int32_t> cu;
  const Matrix q, k, v, out, lse;
};

bool SameRow(const Tensor& a, int64_t row_a, const Tensor& b, int64_t row_b) {
  return std::memcmp(a.Row(row_a), b.Row(row_b), static_cast<size_t>(a.cols) * DTypeSize(a.dtype)) == 0;
}

// One call of WriteKv and AttentionPaged for rows [begin[s], begin[s] + count[s]) of each sequence listed.
struct Part {
  size_t sequence;
  int64_t begin;
  int64_t count;
};
void ExpectSameBits(const Packed& packed, Ops& ops, PageCache& pages, const std::vector<Part>& parts) {
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.count;
  const DType dtype = packed.q.view.dtype;
  const Matrix q(dtype, rows, packed.q.view.cols), k(dtype, rows, packed.k.view.cols),
      v(dtype, rows, packed.v.view.cols), out(dtype, rows, packed.out.view.cols);
  const size_t element = DTypeSize(dtype);
  std::vector<PagedSequence> sequences;
  int64_t row = 0;
  for (const Part& part : parts) {
    sequences.push_back({row, part.count, part.begin, pages.pages[part.sequence]});
    for (int64_t r = 0; r < part.count; ++r, ++row) {
      const int64_t from = packed.cu[part.sequence] + part.begin + r;
      std::memcpy(q.view.Row(row), packed.q.view.Row(from), static_cast<size_t>(q.view.cols) * element);
      std::memcpy(k.view.Row(row), packed.k.view.Row(from), static_cast<size_t>(k.view.cols) * element);
      std::memcpy(v.view.Row(row), packed.v.view.Row(from), static_cast<size_t>(v.view.cols) * element);
    }
  }
  ops.WriteKv(packed.shape, k.view, v.view, sequences, pages.cache);
  ops.AttentionPaged(packed.shape, q.view, sequences, pages.cache, out.view);
  row = 0;
  for (const Part& part : parts) {
    for (int64_t r = 0; r < part.count; ++r, ++row) {
      ASSERT_TRUE(SameRow(out.view, row, packed.out.view, packed.cu[part.sequence] + part.begin + r))
          << DTypeName(dtype) << " H " << packed.shape.num_heads << " G " << packed.shape.num_kv_heads << " E "
          << packed.shape.head_dim << " sequence " << part.sequence << " position " << part.begin + r
          << " of a call of " << rows << " rows";
    }
  }
}

const AttentionShape kShapes[] = {
    {14, 2, 64, 0.125f}, {2, 2, 24, 0.2f}, {2, 1, 80, 0.11f}, {4, 4, 10, 0.3f}, {3, 1, 16, 0.25f}};
const std::vector<int32_t> kLengths = {300, 1, 17, 129, 5, 128, 33};

TEST(MatchedAttention, PagedEqualsPackedForEveryChunking) {
  for (const AttentionShape& shape : kShapes) {
    for (const DType dtype : kTypes) {
      const std::unique_ptr<Ops> trainer = MakeCpuOps(Numerics::kMatched, 1);
      const std::unique_ptr<Ops> server = MakeCpuOps(Numerics::kMatched, 2);
      const Packed packed(shape, dtype, kLengths, *trainer);
      for (const int64_t chunk : {1, 7, 16, 50, 300}) {
        PageCache pages(shape, dtype, kLengths, static_cast<uint32_t>(chunk));
        // All sequences advance together; the short ones end early, so that the batch changes.
        for (int64_t begin = 0; begin < 300; begin += chunk) {
          std::vector<Part> parts;
          for (size_t s = 0; s < kLengths.size(); ++s) {
            if (begin < kLengths[s]) parts.push_back({s, begin, std::min<int64_t>(chunk, kLengths[s] - begin)});
          }
          ExpectSameBits(packed, *server, pages, parts);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(MatchedAttention, DecodeOfOneTo64SequencesEqualsPacked) {
  const AttentionShape shape{14, 2, 64, 0.125f};
  std::vector<int32_t> lengths;
  for (int32_t s = 0; s < 64; ++s) lengths.push_back(1 + s * 37 % 140);
  for (const DType dtype : kTypes) {
    const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 2);
    const Packed packed(shape, dtype, lengths, *ops);
    for (const size_t batch : {1, 2, 3, 8, 31, 64}) {
      PageCache pages(shape, dtype, lengths, static_cast<uint32_t>(batch));
      std::vector<Part> prefill;
      for (size_t s = 0; s < lengths.size(); ++s) {
        if (lengths[s] > 1) prefill.push_back({s, 0, lengths[s] - 1});
      }
      ExpectSameBits(packed, *ops, pages, prefill);
      for (size_t begin = 0; begin < lengths.size(); begin += batch) {
        std::vector<Part> decode;
        for (size_t s = begin; s < std::min(begin + batch, lengths.size()); ++s) {
          decode.push_back({s, lengths[s] - 1, 1});
        }
        ExpectSameBits(packed, *ops, pages, decode);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(MatchedAttention, BitsOfASequenceDoNotDependOnWhatItIsPackedWith) {
  for (const AttentionShape& shape : kShapes) {
    const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 3);
    const Packed all(shape, DType::kF16, kLengths, *ops);
    for (size_t s = 0; s < kLengths.size(); ++s) {
      const std::vector<int32_t> cu = {0, kLengths[s]};
      const Matrix out(DType::kF16, kLengths[s], all.out.view.cols), lse(DType::kF32, kLengths[s], shape.num_heads);
      const int64_t first = all.cu[s], count = kLengths[s];
      ops->AttentionPacked(shape, all.q.view.Rows(first, count), all.k.view.Rows(first, count),
                           all.v.view.Rows(first, count), cu, out.view, lse.view);
      for (int64_t r = 0; r < count; ++r) {
        ASSERT_TRUE(SameRow(out.view, r, all.out.view, first + r));
        ASSERT_TRUE(SameRow(lse.view, r, all.lse.view, first + r));
      }
    }
  }
}

TEST(MatchedAttention, ALaterTokenThatIsNotFiniteDoesNotReachEarlierRows) {
  const AttentionShape shape{6, 2, 24, 0.2f};
  const std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 2);
  const std::vector<int32_t> cu = {0, 40};
  for (int64_t bad = 16; bad < 24; ++bad) {  // any place in a tile of rows
    const Matrix q(DType::kF16, 40, 144, 1), k(DType::kF16, 40, 48, 2), v(DType::kF16, 40, 48, 3);
    const Matrix before(DType::kF16, 40, 144), after(DType::kF16, 40, 144), lse(DType::kF32, 40, 6);
    ops->AttentionPacked(shape, q.view, k.view, v.view, cu, before.view, lse.view);
    for (int64_t i = 0; i < 48; ++i) {
      static_cast<uint16_t*>(k.view.Row(bad))[i] = 0x7E00;                        // NaN
      static_cast<uint16_t*>(v.view.Row(bad))[i] = i % 2 == 0 ? 0x7E00 : 0x7C00;  // NaN, infinity
    }
    ops->AttentionPacked(shape, q.view, k.view, v.view, cu, after.view, lse.view);
    for (int64_t r = 0; r < bad; ++r) ASSERT_TRUE(SameRow(before.view, r, after.view, r)) << "row " << r;
    const std::vector<float> values = after.Read();
    for (size_t i = static_cast<size_t>(bad) * 144; i < values.size(); ++i) ASSERT_FALSE(std::isfinite(values[i]));
  }
}

TEST(NativeAttention, PagedAndPackedDifferAsTwoLibrariesDo) {
  const AttentionShape shape{14, 2, 64, 0.1337f};
  const std::unique_ptr<Ops> matched = MakeCpuOps(Numerics::kMatched, 1);
  const std::unique_ptr<Ops> native = MakeCpuOps(Numerics::kNative, 1);
  const Packed a(shape, DType::kF32, kLengths, *matched), b(shape, DType::kF32, kLengths, *native);
  const std::vector<float> x = a.out.Read(), y = b.out.Read();
  EXPECT_NE(x, y);
  ExpectClose({DType::kF32, y}, {DType::kF32, x}, 1000, "native");
}

TEST(MatchedLogProb, EqualsTheSamplersLogitsMinusLogSumExp) {
  for (const DType dtype : kTypes) {
    const int64_t t = 37, d = 70, vocabulary = 9001;  // three chunks, the last of an odd size
    const Matrix x(dtype, t, d, 1), w(dtype, vocabulary, d, 2, 0.3f);
    const PackedMatrix packed = Pack(w);
    const std::vector<int32_t> targets = RandomIds(t, vocabulary, 3);
    for (const float temperature : {1.0f, 0.7f}) {
      const std::unique_ptr<Ops> learner = MakeCpuOps(Numerics::kMatched, 2);
      const std::unique_ptr<Ops> server = MakeCpuOps(Numerics::kMatched, 1);
      std::vector<float> log_prob(t), lse(t);
      learner->LogProb(x.view, packed, targets, temperature, log_prob.data(), nullptr, lse.data());
      for (int64_t r = 0; r < t; ++r) {
        std::vector<float> logits(vocabulary);
        server->Linear(x.view.Rows(r, 1), packed, Tensor(), Tensor(),
                       Tensor(logits.data(), DType::kF32, 1, vocabulary));
        const float sum = server->LogSumExp(logits.data(), vocabulary, temperature);
        ASSERT_EQ(lse[r], sum);
        ASSERT_EQ(log_prob[r], logits[static_cast<size_t>(targets[r])] * (1.0f / temperature) - sum);
      }
    }
  }
}

}  // namespace
}  // namespace lockstep
