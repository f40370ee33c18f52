// The register tile of the attention kernels: C[rows, columns] (+)= A[rows, depth] B[depth, columns], FP32
// accumulation, one fma chain over ascending depth per output, continued from C when asked. A is FP32 with any strides;
// B's rows are contiguous in fp16, bf16 or fp32. Any row and column count; the bits of an output do not depend on
// either.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_SMALL_PRODUCT_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_SMALL_PRODUCT_H_

#include <algorithm>
#include <cstdint>

#include "engine/kernels/cpu/vector_math.h"

namespace lockstep::cpu {

struct ProductA {
  const float* data;
  int64_t row_stride;    // elements
  int64_t depth_stride;  // elements
};

struct ProductB {
  DType dtype;
  const void* data;
  int64_t row_stride;  // elements between consecutive depths
};

// Memory that will be wanted soon, asked for a few lines a tile while a product runs: asked for at once, the lines
// would fill the core's miss buffers and the product would wait for them.
class Prefetcher {
 public:
  void Add(const void* from, int64_t bytes) { ranges_[count_++] = {static_cast<const char*>(from), (bytes + 63) / 64}; }
  // The share of one of `tiles_left` tiles.
  void Issue(int64_t tiles_left) {
    for (int i = 0; i < count_; ++i) {
      const int64_t lines = (ranges_[i].lines + tiles_left - 1) / tiles_left;
      for (int64_t l = 0; l < lines; ++l) _mm_prefetch(ranges_[i].at + l * 64, _MM_HINT_T0);
      ranges_[i].at += lines * 64;
      ranges_[i].lines -= lines;
    }
  }

 private:
  struct Range {
    const char* at;
    int64_t lines;
  };
  Range ranges_[2];
  int count_ = 0;
};

template <DType kType>
inline __m256 LoadFull(const char* p) {
  if constexpr (kType == DType::kF32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  if constexpr (kType == DType::kF16) return _mm256_cvtph_ps(words);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}

template <int R, DType kType>
inline void ProductTile16(const ProductA& a, const char* b, int64_t b_stride_bytes, int64_t depth, bool add, float* c,
                          int64_t c_stride) {
  constexpr int64_t kHalf = 8 * static_cast<int64_t>(DTypeSize(kType));
  __m256 acc[R][2];
  for (int r = 0; r < R; ++r) {
    acc[r][0] = add ? _mm256_loadu_ps(c + r * c_stride) : _mm256_setzero_ps();
    acc[r][1] = add ? _mm256_loadu_ps(c + r * c_stride + 8) : _mm256_setzero_ps();
  }
  const float* from = a.data;
  for (int64_t k = 0; k < depth; ++k, from += a.depth_stride, b += b_stride_bytes) {
    const __m256 b0 = LoadFull<kType>(b);
    const __m256 b1 = LoadFull<kType>(b + kHalf);
    for (int r = 0; r < R; ++r) {
      const __m256 value = _mm256_broadcast_ss(from + r * a.row_stride);
      acc[r][0] = _mm256_fmadd_ps(value, b0, acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(value, b1, acc[r][1]);
    }
  }
  for (int r = 0; r < R; ++r) {
    _mm256_storeu_ps(c + r * c_stride, acc[r][0]);
    _mm256_storeu_ps(c + r * c_stride + 8, acc[r][1]);
  }
}

// At most 8 columns of one row.
inline void ProductTail(const ProductA& a, const ProductB& b, int64_t column, int64_t count, int64_t depth, bool add,
                        float* c) {
  __m256 acc = add ? LoadFloats(c, count) : _mm256_setzero_ps();
  for (int64_t k = 0; k < depth; ++k) {
    const __m256 v = Load(b.dtype, Offset(b.dtype, b.data, k * b.row_stride + column), count);
    acc = _mm256_fmadd_ps(_mm256_broadcast_ss(a.data + k * a.depth_stride), v, acc);
  }
  StoreFloats(c, acc, count);
}

template <DType kType>
inline void ProductRows16(const ProductA& a, const char* b, int64_t b_stride_bytes, int64_t rows, int64_t depth,
                          bool add, float* c, int64_t c_stride) {
  switch (rows) {
    case 1:
      return ProductTile16<1, kType>(a, b, b_stride_bytes, depth, add, c, c_stride);
    case 2:
      return ProductTile16<2, kType>(a, b, b_stride_bytes, depth, add, c, c_stride);
    case 3:
      return ProductTile16<3, kType>(a, b, b_stride_bytes, depth, add, c, c_stride);
    case 4:
      return ProductTile16<4, kType>(a, b, b_stride_bytes, depth, add, c, c_stride);
    case 5:
      return ProductTile16<5, kType>(a, b, b_stride_bytes, depth, add, c, c_stride);
    default:
      return ProductTile16<6, kType>(a, b, b_stride_bytes, depth, add, c, c_stride);
  }
}

inline void SmallProduct(const ProductA& a, const ProductB& b, int64_t rows, int64_t columns, int64_t depth, bool add,
                         float* c, int64_t c_stride, Prefetcher ahead = {}) {
  const int64_t element = static_cast<int64_t>(DTypeSize(b.dtype));
  const int64_t blocks = (rows + 5) / 6;
  int64_t tiles_left = blocks * (columns / 16);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t row = rows * block / blocks;
    const int64_t count = rows * (block + 1) / blocks - row;
    const ProductA block_a{a.data + row * a.row_stride, a.row_stride, a.depth_stride};
    int64_t column = 0;
    for (; column + 16 <= columns; column += 16) {
      ahead.Issue(tiles_left--);
      const char* from = static_cast<const char*>(b.data) + column * element;
      float* to = c + row * c_stride + column;
      switch (b.dtype) {
        case DType::kF32:
          ProductRows16<DType::kF32>(block_a, from, b.row_stride * element, count, depth, add, to, c_stride);
          break;
        case DType::kF16:
          ProductRows16<DType::kF16>(block_a, from, b.row_stride * element, count, depth, add, to, c_stride);
          break;
        case DType::kBF16:
          ProductRows16<DType::kBF16>(block_a, from, b.row_stride * element, count, depth, add, to, c_stride);
          break;
      }
    }
    for (; column < columns; column += kLanes) {
      for (int64_t r = 0; r < count; ++r) {
        ProductTail({block_a.data + r * a.row_stride, a.row_stride, a.depth_stride}, b, column, columns - column, depth,
                    add, c + (row + r) * c_stride + column);
      }
    }
  }
}

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_SMALL_PRODUCT_H_
