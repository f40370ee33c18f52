// What is known of a row of attention after some of its keys: the maximum of the scores, the sum of exp(score -
// maximum), and, held by whoever multiplies, the values weighted by exp(score - maximum). Two ways to go on, each in
// one order (Milakov and Gimelshein 2018): Extend takes the next block of keys into a state, in ascending order; Merge
// puts a later state behind an earlier one. A block without visible keys, and a state without keys, change no bit.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_STATE_CUH_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_STATE_CUH_

#include <cstdint>
#include <limits>

#include "engine/kernels/cuda/bricks.cuh"

namespace lockstep::cuda {

inline constexpr float kNoScore = -std::numeric_limits<float>::infinity();

// exp of matched numerics: the shared polynomial.
struct MatchedExponential {
  __device__ static float Of(float x) { return Exp(x); }
};

// exp of native numerics for arguments of at most 88: 2^(x log2 e), with a polynomial of degree 5 for the fraction
// (least squares at Chebyshev nodes of [-0.5, 0.5] with constant 1, so that exp(0) is 1; 1.1e-7) and no second constant
// for log2 e: relative error 2^-22 + |x| 2^-23. Below -87.3 it is 0; NaN stays NaN. Half the operations of Exp, and
// none that converts.
struct NativeExponential {
  __device__ static float Of(float x) {
    constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which is in the low bits
    const float t = ScalarLane::Max(-126.0f, x * 1.44269504f);
    const float n = t + kToInteger;
    const float f = t - (n - kToInteger);
    float p = kC5;
    p = fmaf(p, f, kC4);
    p = fmaf(p, f, kC3);
    p = fmaf(p, f, kC2);
    p = fmaf(p, f, kC1);
    p = fmaf(p, f, kC0);
    const uint32_t exponent = (std::bit_cast<uint32_t>(n) << 23) + 0x3F800000u;
    return x < -87.3f ? 0.0f : p * std::bit_cast<float>(exponent);
  }
  static constexpr float kC0 = 1.0f, kC1 = 0.693146884f, kC2 = 0.24022238f, kC3 = 0.0555089302f, kC4 = 0.00967169832f,
                         kC5 = 0.00132186722f;
};

struct SoftmaxState {
  float max = kNoScore;
  float sum = 0;
};

// What scores are taken relative to: 0 where there is none, since -inf - -inf is not a number.
__device__ inline float Center(float max) { return max == kNoScore ? 0.0f : max; }

// Raises the state to a block's maximum and returns the factor of what has been summed so far. The caller adds the
// block's own sum of exp(score - Center(max)) to `sum`, and its values to what it has multiplied by the factor.
template <typename Exponential>
__device__ inline float Extend(SoftmaxState& state, float block_max) {
  const float max = ScalarLane::Max(block_max, state.max);
  const float factor = Exponential::Of(state.max - Center(max));
  state = {max, state.sum * factor};
  return factor;
}

// The weighted values of two states become fmaf(earlier, first, later * second).
struct MergeFactors {
  float first, second;
};
__device__ inline float MergeValues(float earlier, float later, const MergeFactors& factors) {
  return fmaf(earlier, factors.first, later * factors.second);
}

// `state` and, behind it, `later`. Merging into the empty state gives `later`, bit for bit.
template <typename Exponential>
__device__ inline MergeFactors Merge(SoftmaxState& state, const SoftmaxState& later) {
  const float max = ScalarLane::Max(later.max, state.max);
  const MergeFactors factors = {Exponential::Of(state.max - Center(max)), Exponential::Of(later.max - Center(max))};
  state = {max, MergeValues(state.sum, later.sum, factors)};
  return factors;
}

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_ATTENTION_STATE_CUH_
