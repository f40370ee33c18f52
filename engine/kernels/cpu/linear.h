// The linear layer and its two backward products, on cpu/gemm. Contracts: engine/kernels/ops.h.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_LINEAR_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_LINEAR_H_

#include "engine/kernels/cpu/context.h"
#include "engine/kernels/packed_matrix.h"
#include "engine/tensor/tensor.h"

namespace lockstep::cpu {

void Linear(CpuContext& context, const Tensor& x, const PackedMatrix& w, const Tensor& bias, const Tensor& residual,
            const Tensor& out);

// The reduction over n is one fma chain in ascending n (matched) or in blocks of 512 (native).
void LinearBackwardInput(CpuContext& context, const Tensor& d_out, const PackedMatrix& w, const Tensor& d_x,
                         bool accumulate);
// The same, for the weight rows [row_begin, row_begin + d_out.cols) alone: row_begin is a multiple of 16.
void LinearBackwardInputRows(CpuContext& context, const Tensor& d_out, const PackedMatrix& w, int64_t row_begin,
                             const Tensor& d_x, bool accumulate);

// The reduction over T is one fma chain in ascending t per call (native: blocks of 512), then added to d_w.
void LinearBackwardWeight(CpuContext& context, const Tensor& d_out, const Tensor& x, const Tensor& d_w,
                          const Tensor& d_bias);

// Logits-like product of some panels: out [T, 16 * panel_count] FP32 = x W[16 * panel_begin ..]^T, columns beyond n are
// zero-weight columns of the last panel. The same chains, so the same bits, as Linear into FP32.
void LinearPanels(CpuContext& context, const Tensor& x, const PackedMatrix& w, int64_t panel_begin, int64_t panel_count,
                  const Tensor& out);

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_LINEAR_H_
