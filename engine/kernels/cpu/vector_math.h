// The one vector idiom of the small kernels: load as FP32, compute in 8 lanes, store rounded; exp and log as fixed
// polynomials. Tails go through the same vector code with neutral lanes, so that bits do not depend on the length.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_VECTOR_MATH_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_VECTOR_MATH_H_

#include <immintrin.h>

#include <cmath>
#include <cstdint>

#include "engine/kernels/polynomials.h"
#include "engine/tensor/dtype.h"

namespace lockstep::cpu {

inline constexpr int64_t kLanes = 8;

// The lanes of engine/kernels/polynomials.h in AVX2.
struct Avx2Lanes {
  using Float = __m256;
  using Mask = __m256;
  static Float Set(float c) { return _mm256_set1_ps(c); }
  static Float Add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float Sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float Mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float Fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float NegFma(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a, b, c); }
  static Float Min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float Max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float Round(Float x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Float HalfDown(Float n) {
    return _mm256_round_ps(_mm256_mul_ps(n, _mm256_set1_ps(0.5f)), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  static Float PowerOfTwo(Float n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
  static Float Exponent(Float x) {
    const __m256i biased = _mm256_srli_epi32(_mm256_castps_si256(x), 23);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(biased, _mm256_set1_epi32(126)));
  }
  static Float Mantissa(Float x) {
    const __m256i fraction = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x007FFFFF));
    return _mm256_castsi256_ps(_mm256_or_si256(fraction, _mm256_set1_epi32(0x3F000000)));
  }
  static Mask Less(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static Mask Greater(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  static Mask Equal(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static Mask NotGreaterEqual(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_NGE_UQ); }
  static Mask Unordered(Float x) { return _mm256_cmp_ps(x, x, _CMP_UNORD_Q); }
  static Float Keep(Mask mask, Float v) { return _mm256_and_ps(mask, v); }
  static Float Drop(Mask mask, Float v) { return _mm256_andnot_ps(mask, v); }
  static Float Select(Mask mask, Float a, Float b) { return _mm256_blendv_ps(b, a, mask); }
};

inline __m256 Exp(__m256 x) { return PolynomialExp<Avx2Lanes>(x); }
inline __m256 Log(__m256 x) { return PolynomialLog<Avx2Lanes>(x); }

inline float ExpScalar(float x) { return _mm256_cvtss_f32(Exp(_mm256_set1_ps(x))); }
inline float LogScalar(float x) { return _mm256_cvtss_f32(Log(_mm256_set1_ps(x))); }

// The fixed tree over the 8 lanes: ((0+4)+(2+6)) + ((1+5)+(3+7)).
inline float SumLanes(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float MaxLanes(__m256 v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

// Lanes below `count` (0 .. 8) are all ones.
inline __m256i LaneMask(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline __m256 LoadFloats(const float* p, int64_t count) {
  return count >= kLanes ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, LaneMask(count));
}

inline void StoreFloats(float* p, __m256 v, int64_t count) {
  if (count >= kLanes) {
    _mm256_storeu_ps(p, v);
  } else {
    _mm256_maskstore_ps(p, LaneMask(count), v);
  }
}

// min(count, 8) elements of dtype at p as FP32; the other lanes are 0.
inline __m256 Load(DType dtype, const void* p, int64_t count = kLanes) {
  if (dtype == DType::kF32) return LoadFloats(static_cast<const float*>(p), count);
  __m128i halves;
  if (count >= kLanes) {
    halves = _mm_loadu_si128(static_cast<const __m128i*>(p));
  } else {
    alignas(16) uint16_t words[8] = {};
    for (int64_t i = 0; i < count; ++i) words[i] = static_cast<const uint16_t*>(p)[i];
    halves = _mm_load_si128(reinterpret_cast<const __m128i*>(words));
  }
  return dtype == DType::kF16 ? _mm256_cvtph_ps(halves)
                              : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

// Stores the first min(count, 8) lanes, rounded to dtype.
inline void Store(DType dtype, void* p, __m256 v, int64_t count = kLanes) {
  if (dtype == DType::kF32) {
    StoreFloats(static_cast<float*>(p), v, count);
    return;
  }
  alignas(32) float values[8];
  _mm256_store_ps(values, v);
  ConvertFromFloat(dtype, values, p, static_cast<size_t>(count < kLanes ? count : kLanes));
}

inline const void* Offset(DType dtype, const void* p, int64_t elements) {
  return static_cast<const char*>(p) + elements * static_cast<int64_t>(DTypeSize(dtype));
}
inline void* Offset(DType dtype, void* p, int64_t elements) {
  return static_cast<char*>(p) + elements * static_cast<int64_t>(DTypeSize(dtype));
}

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_VECTOR_MATH_H_
