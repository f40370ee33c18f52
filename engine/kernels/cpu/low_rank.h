// Gradients of a low-rank update of a linear layer's weights. Contract: engine/kernels/ops.h.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_LOW_RANK_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_LOW_RANK_H_

#include "engine/kernels/cpu/context.h"
#include "engine/tensor/tensor.h"

namespace lockstep::cpu {

void LowRankBackward(CpuContext& context, const Tensor& d_out, const Tensor& x, const Tensor& a, const Tensor& b,
                     float scale, const Tensor& d_a, const Tensor& d_b);

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_LOW_RANK_H_
