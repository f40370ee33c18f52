// Rotation, KV write and SwiGLU, compiled for the CPU, against the CPU's matched operations: equal bits.
#include "engine/kernels/cuda/emulation_test_util.h"

namespace lockstep::cuda {
namespace {

class RotaryActivationTest : public KernelTest {};
INSTANTIATE_TEST_SUITE_P(DTypes, RotaryActivationTest, testing::ValuesIn(kDTypes), DTypeTestName);

// Rotary tables of the launchers are dense; those of ops_test_util.h have padded rows.
std::vector<float> DenseTable(const Matrix& table) { return table.Read(); }

TEST_P(RotaryActivationTest, RopeTurnsForwardAndBack) {
  const int64_t max_positions = 50;
  for (const int64_t rows : {1, 9}) {
    for (const int64_t e : {2, 12, 64, 128}) {
      const int64_t heads = 3;
      const Matrix table = RotaryTable(max_positions, e);
      std::vector<float> dense = DenseTable(table);
      const Tensor dense_view(dense.data(), DType::kF32, max_positions, e);
      const std::vector<int32_t> positions = RandomIds(rows, max_positions, 7);
      for (const bool backward : {false, true}) {
        const Matrix x = Make(rows, heads * e, 1), expected = Copy(x);
        cpu_->Rope(expected.view, heads, e, positions, table.view, backward);
        InEveryOrder([&] {
          const Matrix got = Copy(x);
          ASSERT_EQ(Rope(got.view, heads, e, positions.data(), dense_view, backward, {}), cudaSuccess);
          ExpectSameBytes(got, expected, "rotation of heads of " + std::to_string(e));
        });
      }
    }
  }
}

// Two sequences: one continues at position 5 over a page's end, one starts at 0; one padded row at the end.
class PagedRows {
 public:
  explicit PagedRows(const PageCache& cache) {
    Add(cache, 0, 5, 14);
    Add(cache, 1, 0, 3);
  }
  std::vector<PagedSequence> sequences;
  std::vector<int32_t> positions, slots;

 private:
  void Add(const PageCache& cache, size_t sequence, int64_t begin, int64_t count) {
    const std::vector<int32_t>& pages = cache.pages[sequence];
    sequences.push_back({static_cast<int64_t>(positions.size()), count, begin, pages});
    for (int64_t p = begin; p < begin + count; ++p) {
      positions.push_back(static_cast<int32_t>(p));
      const int64_t page = pages[static_cast<size_t>(p / kPageTokens)];
      slots.push_back(static_cast<int32_t>(page * kPageTokens + p % kPageTokens));
    }
  }
};

struct KvCase {
  QkvShape shape;
  PageCache expected_cache, cache;
  PagedRows rows;
  Matrix table;
  std::vector<float> dense;
  Tensor dense_view;

  KvCase(DType dtype, int64_t e)
      : shape{4, 2, e},
        expected_cache({4, 2, e, 1}, dtype, {19, 3}, 5),
        cache({4, 2, e, 1}, dtype, {19, 3}, 5),
        rows(expected_cache),
        table(RotaryTable(32, e)),
        dense(table.Read()),
        dense_view(dense.data(), DType::kF32, 32, e) {}

  int64_t count() const { return static_cast<int64_t>(rows.positions.size()); }
  int64_t cols() const { return (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim; }

  // y: projected rows in the storage dtype; the first columns become q.
  void Expect(Ops& ops, const Matrix& y) {
    const int64_t query = shape.num_heads * shape.head_dim, kv = shape.num_kv_heads * shape.head_dim;
    const Tensor q = y.view.Cols(0, query), k = y.view.Cols(query, kv), v = y.view.Cols(query + kv, kv);
    ops.Rope(q, shape.num_heads, shape.head_dim, rows.positions, table.view, false);
    ops.Rope(k, shape.num_kv_heads, shape.head_dim, rows.positions, table.view, false);
    ops.WriteKv({shape.num_heads, shape.num_kv_heads, shape.head_dim, 1}, k, v, rows.sequences, expected_cache.cache);
  }
};

TEST_P(RotaryActivationTest, RopeAndWriteFillThePagesThatTheCpuFills) {
  for (const int64_t e : {6, 64}) {
    KvCase c(dtype(), e);
    const Matrix qkv = Make(c.count(), c.cols(), 1), y = Copy(qkv);
    c.Expect(*cpu_, y);
    const int64_t query = c.shape.num_heads * e;
    const Matrix in_place = Copy(qkv);
    ASSERT_EQ(RopeWriteKv(c.shape, in_place.view, {}, c.rows.positions.data(), c.rows.slots.data(), c.dense_view,
                          in_place.view.Cols(0, query), c.cache.keys.data(), c.cache.values.data(), {}),
              cudaSuccess);
    EXPECT_EQ(c.cache.keys, c.expected_cache.keys);
    EXPECT_EQ(c.cache.values, c.expected_cache.values);
    for (int64_t t = 0; t < c.count(); ++t) {
      EXPECT_EQ(std::memcmp(in_place.view.Row(t), y.view.Row(t), static_cast<size_t>(query) * DTypeSize(dtype())), 0);
    }
  }
}

TEST_P(RotaryActivationTest, TheBiasIsAddedToFp32SumsBeforeTheOneRounding) {
  KvCase c(dtype(), 64);
  const Matrix sums(DType::kF32, c.count(), c.cols(), 1), bias = Make(1, c.cols(), 2);
  Matrix y(dtype(), c.count(), c.cols());
  std::vector<float> values = sums.Read();
  const std::vector<float> biases = bias.Read();
  for (size_t i = 0; i < values.size(); ++i) values[i] += biases[i % biases.size()];
  y.Write(values);
  c.Expect(*cpu_, y);
  const Matrix q(dtype(), c.count(), c.shape.num_heads * 64);
  ASSERT_EQ(RopeWriteKv(c.shape, sums.view, bias.view, c.rows.positions.data(), c.rows.slots.data(), c.dense_view,
                        q.view, c.cache.keys.data(), c.cache.values.data(), {}),
            cudaSuccess);
  EXPECT_EQ(c.cache.keys, c.expected_cache.keys);
  EXPECT_EQ(c.cache.values, c.expected_cache.values);
  for (int64_t t = 0; t < c.count(); ++t) {
    EXPECT_EQ(std::memcmp(q.view.Row(t), y.view.Row(t), static_cast<size_t>(q.view.cols) * DTypeSize(dtype())), 0);
  }
}

TEST_P(RotaryActivationTest, APaddedRowWritesNoPage) {
  KvCase c(dtype(), 16);
  const std::vector<unsigned char> keys = c.cache.keys, values = c.cache.values;
  const Matrix qkv = Make(1, c.cols(), 1), q(dtype(), 1, c.shape.num_heads * 16);
  const int32_t position = 3, slot = -1;
  ASSERT_EQ(RopeWriteKv(c.shape, qkv.view, {}, &position, &slot, c.dense_view, q.view, c.cache.keys.data(),
                        c.cache.values.data(), {}),
            cudaSuccess);
  EXPECT_EQ(c.cache.keys, keys);
  EXPECT_EQ(c.cache.values, values);
}

TEST_P(RotaryActivationTest, SwiGluAndItsBackwardHaveTheBitsOfTheCpu) {
  for (const int64_t rows : {1, 5}) {
    for (const int64_t f : {1, 8, 43, 704, 3001}) {
      // Wide enough that exp reaches both of its ends.
      const Matrix gate_up = Make(rows, 2 * f, 1, 40), d_out = Make(rows, f, 2);
      const Matrix expected(dtype(), rows, f), expected_gradient(dtype(), rows, 2 * f);
      cpu_->SwiGlu(gate_up.view, expected.view);
      cpu_->SwiGluBackward(d_out.view, gate_up.view, expected_gradient.view);
      const Matrix out(dtype(), rows, f), gradient(dtype(), rows, 2 * f);
      ASSERT_EQ(SwiGlu(gate_up.view, out.view, {}), cudaSuccess);
      ASSERT_EQ(SwiGluBackward(d_out.view, gate_up.view, gradient.view, {}), cudaSuccess);
      ExpectSameBytes(out, expected, "SwiGLU of " + std::to_string(f));
      ExpectSameBytes(gradient, expected_gradient, "SwiGLU's gradient of " + std::to_string(f));
    }
  }
}

}  // namespace
}  // namespace lockstep::cuda
