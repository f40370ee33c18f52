// The FP32 end of a training step, over flat arenas: gradient norm and AdamW. One pass each.
#ifndef LOCKSTEP_ENGINE_KERNELS_OPTIMIZER_H_
#define LOCKSTEP_ENGINE_KERNELS_OPTIMIZER_H_

#include <cstdint>

#include "engine/kernels/adamw.h"
#include "engine/kernels/contract.h"
#include "engine/kernels/cpu/thread_pool.h"

namespace lockstep {

// torch.optim.AdamW (Loshchilov and Hutter 2019, decoupled decay), in place, with g = grad * grad_multiplier:
//   p -= lr * weight_decay * p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
//   p -= lr / (1 - b1^step) * m / (sqrt(v) / sqrt(1 - b2^step) + eps).
// Elements are independent: the bits do not depend on the threads.
void AdamWStep(const AdamWParams& params, float* param, float* m, float* v, const float* grad, int64_t n,
               ThreadPool& pool);

// Sum of squares in double: chunks of kGradNormChunk elements (4 lanes each, ascending), chunks summed in ascending
// order, so the bits do not depend on the threads. Not finite exactly if an element is not finite.
double GradNormSquared(const float* grad, int64_t n, ThreadPool& pool);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_KERNELS_OPTIMIZER_H_
