// Tests only: see cuda_runtime.h beside this file.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_CUDA_FP16_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_CUDA_FP16_H_

#include <cstdint>

#include "engine/tensor/dtype.h"

struct __half {
  uint16_t bits = 0;
};
inline float __half2float(__half x) { return lockstep::HalfToFloat(x.bits); }
inline __half __float2half_rn(float x) { return {lockstep::FloatToHalf(x)}; }

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_CUDA_FP16_H_
