// The FP32 end of a training step, over flat arenas: gradient norm and AdamW. One pass each.
#ifndef LOCKSTEP_ENGINE_KERNELS_OPTIMIZER_H_
#define LOCKSTEP_ENGINE_KERNELS_OPTIMIZER_H_

#include <cstdint>

#include "engine/kernels/cpu/thread_pool.h"

namespace lockstep {

struct AdamWParams {
  float lr = 0;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float eps = 1e-8f;
  float weight_decay = 0;
  int64_t step = 1;           // 1 for the first update: bias correction
  float grad_multiplier = 1;  // unscale and clip factor in one
};

// torch.optim.AdamW (Loshchilov and Hutter 2019, decoupled decay), in place, with g = grad * grad_multiplier:
//   p -= lr * weight_decay * p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
//   p -= lr / (1 - b1^step) * m / (sqrt(v) / sqrt(1 - b2^step) + eps).
// Elements are independent: the bits do not depend on the threads.
void AdamWStep(const AdamWParams& params, float* param, float* m, float* v, const float* grad, int64_t n,
               ThreadPool& pool);

// Sum of squares in double: chunks of 65,536 elements (4 lanes each, ascending), chunks summed in ascending order, so
// the bits do not depend on the threads. Not finite exactly if an element is not finite.
double GradNormSquared(const float* grad, int64_t n, ThreadPool& pool);

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_KERNELS_OPTIMIZER_H_
