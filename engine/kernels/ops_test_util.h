// What the tests of the operations share: matrices with padded rows, random values, one way to compare.
#ifndef LOCKSTEP_ENGINE_KERNELS_OPS_TEST_UTIL_H_
#define LOCKSTEP_ENGINE_KERNELS_OPS_TEST_UTIL_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/kernels/ops.h"
#include "gtest/gtest.h"

namespace lockstep {

// A matrix whose rows are padded by three elements, so that a kernel that ignores the stride is found out.
struct Matrix {
  Matrix(DType dtype, int64_t rows, int64_t cols)
      : buffer(static_cast<size_t>(std::max<int64_t>(1, rows * (cols + 3))) * DTypeSize(dtype)),
        view(buffer.data(), dtype, rows, cols, cols + 3) {}
  Matrix(DType dtype, int64_t rows, int64_t cols, uint32_t seed, float sigma = 1.0f) : Matrix(dtype, rows, cols) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, sigma);
    std::vector<float> values(static_cast<size_t>(rows * cols));
    for (float& value : values) value = normal(random);
    Write(values);
  }

  void Write(const std::vector<float>& values) {
    for (int64_t r = 0; r < view.rows; ++r) {
      ConvertFromFloat(view.dtype, values.data() + r * view.cols, view.Row(r), static_cast<size_t>(view.cols));
    }
  }
  std::vector<float> Read() const {
    std::vector<float> values(static_cast<size_t>(view.rows * view.cols));
    for (int64_t r = 0; r < view.rows; ++r) {
      ConvertToFloat(view.dtype, view.Row(r), values.data() + r * view.cols, static_cast<size_t>(view.cols));
    }
    return values;
  }

  Buffer buffer;
  Tensor view;
};

inline PackedMatrix Pack(const Matrix& w) {
  PackedMatrix packed(w.view.dtype, w.view.rows, w.view.cols);
  if (w.view.rows > 0) packed.SetRows(0, w.view);
  return packed;
}

inline std::vector<int32_t> RandomIds(int64_t count, int64_t limit, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(limit));
  return ids;
}

// Rotary table [positions, E]: cosines then sines.
inline Matrix RotaryTable(int64_t positions, int64_t head_dim) {
  Matrix table(DType::kF32, positions, head_dim);
  for (int64_t p = 0; p < positions; ++p) {
    float* row = static_cast<float*>(table.view.Row(p));
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      const double angle = static_cast<double>(p) * std::pow(1e4, -2.0 * static_cast<double>(i) / head_dim);
      row[i] = static_cast<float>(std::cos(angle));
      row[head_dim / 2 + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

inline std::vector<int32_t> CuSeqlens(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> cu(lengths.size() + 1, 0);
  std::partial_sum(lengths.begin(), lengths.end(), cu.begin() + 1);
  return cu;
}

// A page cache of `sequences` of the given lengths whose pages lie in a shuffled order. Every byte is 0xFF (NaN in all
// dtypes), so that a key beyond a row's own position that enters anywhere shows.
struct PageCache {
  PageCache(const AttentionShape& shape, DType dtype, const std::vector<int32_t>& lengths, uint32_t seed) {
    int32_t total = 0;
    for (const int32_t length : lengths) total += static_cast<int32_t>((length + kPageTokens - 1) / kPageTokens);
    std::vector<int32_t> order(static_cast<size_t>(total));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    size_t at = 0;
    for (const int32_t length : lengths) {
      const size_t count = static_cast<size_t>((length + kPageTokens - 1) / kPageTokens);
      pages.emplace_back(order.begin() + static_cast<int64_t>(at), order.begin() + static_cast<int64_t>(at + count));
      at += count;
    }
    const size_t bytes =
        static_cast<size_t>(std::max(total, 1) * shape.num_kv_heads * shape.head_dim * kPageTokens) * DTypeSize(dtype);
    keys.assign(bytes, 0xFF);
    values.assign(bytes, 0xFF);
    cache = {dtype, keys.data(), values.data(), total};
  }

  std::vector<std::vector<int32_t>> pages;
  std::vector<unsigned char> keys, values;
  KvPages cache;
};

// One output of an operation and the dtype it was stored in.
struct Output {
  DType dtype;
  std::vector<float> values;
};

// One step of the storage type at `value`: what two roundings of almost equal FP32 values can differ by.
inline double StoreStep(DType dtype, double value) {
  if (dtype == DType::kF32) return std::abs(value) * 0x1p-23;
  return dtype == DType::kF16 ? std::abs(value) * 0x1p-10 + 0x1p-24 : std::abs(value) * 0x1p-7;
}

// got is within one storage step and `roundings` FP32 roundings of the largest element of the truth, or of `terms`: the
// size of the terms of the sums, where they may cancel to nothing (a softmax over one key has no gradient).
inline void ExpectClose(const Output& got, const Output& truth, double roundings, const std::string& where,
                        double terms = 0) {
  ASSERT_EQ(got.values.size(), truth.values.size()) << where;
  double largest = terms;
  for (const float value : truth.values) largest = std::max(largest, std::abs(static_cast<double>(value)));
  for (size_t i = 0; i < truth.values.size(); ++i) {
    const double expected = truth.values[i];
    ASSERT_NEAR(got.values[i], expected, StoreStep(truth.dtype, expected) + roundings * 0x1p-24 * largest)
        << where << " element " << i;
  }
}

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_KERNELS_OPS_TEST_UTIL_H_
