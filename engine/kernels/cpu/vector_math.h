// The one vector idiom of the small kernels: load as FP32, compute in 8 lanes, store rounded; exp and log as fixed
// polynomials. Tails go through the same vector code with neutral lanes, so that bits do not depend on the length.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_VECTOR_MATH_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_VECTOR_MATH_H_

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "engine/tensor/dtype.h"

namespace lockstep::cpu {

inline constexpr int64_t kLanes = 8;

// exp(x) to about 1 ulp (Cephes' expf: x = n ln2 + r, degree-6 polynomial in r), FMA form. Below -87.3 it is 0,
// above 88.7 +inf; NaN stays NaN.
inline __m256 Exp(__m256 x) {
  const __m256 low = _mm256_set1_ps(-87.33654f);
  const __m256 high = _mm256_set1_ps(88.72283f);
  const __m256 clamped = _mm256_max_ps(_mm256_min_ps(x, high), low);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(clamped, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), clamped);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  // 2^n in two factors: n = 128 has no FP32 exponent of its own.
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
  p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
  p = _mm256_andnot_ps(_mm256_cmp_ps(x, low, _CMP_LT_OQ), p);
  p = _mm256_blendv_ps(p, _mm256_set1_ps(std::numeric_limits<float>::infinity()), _mm256_cmp_ps(x, high, _CMP_GT_OQ));
  return _mm256_blendv_ps(p, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

// log(x) to about 1 ulp for positive normal x (Cephes' logf), FMA form; 0 gives -inf, negative NaN, +inf +inf.
inline __m256 Log(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  __m256 e = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(126)));
  __m256 m = _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x007FFFFF)),
                                                 _mm256_set1_epi32(0x3F000000)));  // [0.5, 1)
  const __m256 small = _mm256_cmp_ps(m, _mm256_set1_ps(0.707106781186547524f), _CMP_LT_OQ);
  e = _mm256_sub_ps(e, _mm256_and_ps(small, _mm256_set1_ps(1.0f)));
  m = _mm256_add_ps(_mm256_sub_ps(m, _mm256_set1_ps(1.0f)), _mm256_and_ps(small, m));
  const __m256 z = _mm256_mul_ps(m, m);
  __m256 p = _mm256_set1_ps(7.0376836292e-2f);
  p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(-1.1514610310e-1f));
  p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(1.1676998740e-1f));
  p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(-1.2420140846e-1f));
  p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(1.4249322787e-1f));
  p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(-1.6668057665e-1f));
  p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(2.0000714765e-1f));
  p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(-2.4999993993e-1f));
  p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(3.3333331174e-1f));
  p = _mm256_mul_ps(_mm256_mul_ps(p, m), z);
  p = _mm256_fmadd_ps(e, _mm256_set1_ps(-2.12194440e-4f), p);
  p = _mm256_fnmadd_ps(_mm256_set1_ps(0.5f), z, p);
  __m256 result = _mm256_fmadd_ps(e, _mm256_set1_ps(0.693359375f), _mm256_add_ps(m, p));
  const __m256 zero = _mm256_setzero_ps();
  const __m256 infinity = _mm256_set1_ps(std::numeric_limits<float>::infinity());
  result = _mm256_blendv_ps(result, infinity, _mm256_cmp_ps(x, infinity, _CMP_EQ_OQ));
  result = _mm256_blendv_ps(result, _mm256_sub_ps(zero, infinity), _mm256_cmp_ps(x, zero, _CMP_EQ_OQ));
  return _mm256_blendv_ps(result, _mm256_set1_ps(std::numeric_limits<float>::quiet_NaN()),
                          _mm256_cmp_ps(x, zero, _CMP_NGE_UQ));
}

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
