// The operations that walk rows: embedding, RMSNorm, rotary embedding, SwiGLU, and their backwards. Contracts:
// engine/kernels/ops.h. Rows are split over threads; a row's bits do not depend on the split.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_ELEMENTWISE_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_ELEMENTWISE_H_

#include <cstdint>
#include <span>

#include "engine/kernels/cpu/context.h"
#include "engine/kernels/packed_matrix.h"
#include "engine/tensor/tensor.h"

namespace lockstep::cpu {

void Embedding(CpuContext& context, std::span<const int32_t> ids, const PackedMatrix& table, const Tensor& out);
void EmbeddingBackward(CpuContext& context, std::span<const int32_t> ids, const Tensor& d_out, const Tensor& d_table);

// Sum of squares: lane i takes the elements with index mod 8 == i in ascending order by fma; then the lane tree.
void RmsNorm(CpuContext& context, const Tensor& x, const Tensor& weight, float eps, const Tensor& out, float* rstd);
// d_weight: rows (and in a row groups) are summed in ascending order within 64 fixed slices of the rows, the slices in
// ascending order.
void RmsNormBackward(CpuContext& context, const Tensor& d_out, const Tensor& x, const Tensor& weight, const float* rstd,
                     const Tensor& d_residual, const Tensor& d_x, const Tensor& d_weight);

void Rope(CpuContext& context, const Tensor& x, int64_t num_heads, int64_t head_dim, std::span<const int32_t> positions,
          const Tensor& cos_sin, bool backward);

void SwiGlu(CpuContext& context, const Tensor& gate_up, const Tensor& out);
void SwiGluBackward(CpuContext& context, const Tensor& d_out, const Tensor& gate_up, const Tensor& d_gate_up);

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_ELEMENTWISE_H_
