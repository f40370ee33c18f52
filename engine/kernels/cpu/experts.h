// Routing of a mixture of experts, and the rows' way to their experts and back. Contracts: engine/kernels/ops.h. Rows
// are split over threads; a row's bits do not depend on the split.
#ifndef LOCKSTEP_ENGINE_KERNELS_CPU_EXPERTS_H_
#define LOCKSTEP_ENGINE_KERNELS_CPU_EXPERTS_H_

#include <cstdint>
#include <span>

#include "engine/kernels/cpu/context.h"
#include "engine/tensor/tensor.h"

namespace lockstep::cpu {

void RouteTopK(CpuContext& context, const Tensor& logits, int64_t top_k, bool normalize, int32_t* experts,
               float* weights);
void RouteGiven(CpuContext& context, const Tensor& logits, std::span<const int32_t> experts, bool normalize,
                float* weights);
void RouteTopKBackward(CpuContext& context, const Tensor& logits, std::span<const int32_t> experts, bool normalize,
                       const float* products, const Tensor& d_logits);
void GatherRows(CpuContext& context, const Tensor& x, std::span<const int32_t> rows, const float* scale,
                const Tensor& out);
void CombineRows(CpuContext& context, const Tensor& x, std::span<const int32_t> slots, const float* weights,
                 const Tensor& residual, const Tensor& out);
void RowDots(CpuContext& context, const Tensor& a, const Tensor& b, float* out);

}  // namespace lockstep::cpu

#endif  // LOCKSTEP_ENGINE_KERNELS_CPU_EXPERTS_H_
