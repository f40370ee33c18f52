// exp and log as fixed polynomials, written once for every backend: L is a set of lanes (8 of AVX2, or one scalar of a
// GPU thread) with the types Float and Mask and the operations used below, each IEEE FP32 rounded to nearest even, so
// that all backends give the same bits. constexpr, so that device code takes them (nvcc --expt-relaxed-constexpr).
//
// L: Set(c); Add, Sub, Mul; Fma(a, b, c) = a b + c; NegFma(a, b, c) = c - a b; Min(a, b) = a < b ? a : b, Max likewise;
// Round (to nearest even integer); PowerOfTwo(n) for integral n in [-126, 127]; HalfDown(n) = floor(n / 2);
// Exponent(x) = the biased exponent - 126; Mantissa(x) in [0.5, 1); Less, Greater, Equal, NotGreaterEqual, Unordered;
// Keep(mask, v) = v where the mask is set, else 0; Drop the opposite; Select(mask, a, b) = a where it is set, else b.
#ifndef LOCKSTEP_ENGINE_KERNELS_POLYNOMIALS_H_
#define LOCKSTEP_ENGINE_KERNELS_POLYNOMIALS_H_

#include <limits>

namespace lockstep {

// exp(x) to about 1 ulp (Cephes' expf: x = n ln2 + r, degree-6 polynomial in r), FMA form. Below -87.3 it is 0,
// above 88.7 +inf; NaN stays NaN.
template <typename L>
constexpr typename L::Float PolynomialExp(typename L::Float x) {
  using F = typename L::Float;
  const F low = L::Set(-87.33654f);
  const F high = L::Set(88.72283f);
  const F clamped = L::Max(L::Min(x, high), low);
  const F n = L::Round(L::Mul(clamped, L::Set(1.44269504088896341f)));
  F r = L::NegFma(n, L::Set(0.693359375f), clamped);
  r = L::NegFma(n, L::Set(-2.12194440e-4f), r);
  F p = L::Set(1.9875691500e-4f);
  p = L::Fma(p, r, L::Set(1.3981999507e-3f));
  p = L::Fma(p, r, L::Set(8.3334519073e-3f));
  p = L::Fma(p, r, L::Set(4.1665795894e-2f));
  p = L::Fma(p, r, L::Set(1.6666665459e-1f));
  p = L::Fma(p, r, L::Set(5.0000001201e-1f));
  p = L::Fma(p, L::Mul(r, r), L::Add(r, L::Set(1.0f)));
  // 2^n in two factors: n = 128 has no FP32 exponent of its own.
  const F half = L::HalfDown(n);
  p = L::Mul(p, L::PowerOfTwo(half));
  p = L::Mul(p, L::PowerOfTwo(L::Sub(n, half)));
  p = L::Drop(L::Less(x, low), p);
  p = L::Select(L::Greater(x, high), L::Set(std::numeric_limits<float>::infinity()), p);
  return L::Select(L::Unordered(x), x, p);
}

// log(x) to about 1 ulp for positive normal x (Cephes' logf), FMA form; 0 gives -inf, negative NaN, +inf +inf.
template <typename L>
constexpr typename L::Float PolynomialLog(typename L::Float x) {
  using F = typename L::Float;
  F e = L::Exponent(x);
  F m = L::Mantissa(x);
  const auto small = L::Less(m, L::Set(0.707106781186547524f));
  e = L::Sub(e, L::Keep(small, L::Set(1.0f)));
  m = L::Add(L::Sub(m, L::Set(1.0f)), L::Keep(small, m));
  const F z = L::Mul(m, m);
  F p = L::Set(7.0376836292e-2f);
  p = L::Fma(p, m, L::Set(-1.1514610310e-1f));
  p = L::Fma(p, m, L::Set(1.1676998740e-1f));
  p = L::Fma(p, m, L::Set(-1.2420140846e-1f));
  p = L::Fma(p, m, L::Set(1.4249322787e-1f));
  p = L::Fma(p, m, L::Set(-1.6668057665e-1f));
  p = L::Fma(p, m, L::Set(2.0000714765e-1f));
  p = L::Fma(p, m, L::Set(-2.4999993993e-1f));
  p = L::Fma(p, m, L::Set(3.3333331174e-1f));
  p = L::Mul(L::Mul(p, m), z);
  p = L::Fma(e, L::Set(-2.12194440e-4f), p);
  p = L::NegFma(L::Set(0.5f), z, p);
  F result = L::Fma(e, L::Set(0.693359375f), L::Add(m, p));
  const F zero = L::Set(0.0f);
  const F infinity = L::Set(std::numeric_limits<float>::infinity());
  result = L::Select(L::Equal(x, infinity), infinity, result);
  result = L::Select(L::Equal(x, zero), L::Sub(zero, infinity), result);
  return L::Select(L::NotGreaterEqual(x, zero), L::Set(std::numeric_limits<float>::quiet_NaN()), result);
}

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_KERNELS_POLYNOMIALS_H_
