// Tests only: see cuda_runtime.h beside this file.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_CUDA_BF16_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_CUDA_BF16_H_

#include <cstdint>

#include "engine/tensor/dtype.h"

struct __nv_bfloat16 {
  uint16_t bits = 0;
};
inline float __bfloat162float(__nv_bfloat16 x) { return lockstep::BFloat16ToFloat(x.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {lockstep::FloatToBFloat16(x)}; }

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_CUDA_BF16_H_
