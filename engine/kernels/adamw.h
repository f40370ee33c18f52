// AdamW's parameters, and the factors of a step that every backend derives from them in the same way. The formula:
// optimizer.h.
#ifndef LOCKSTEP_ENGINE_KERNELS_ADAMW_H_
#define LOCKSTEP_ENGINE_KERNELS_ADAMW_H_

#include <cmath>
#include <cstdint>

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

struct AdamWFactors {
  float step_size = 0;      // lr / (1 - b1^step)
  float inverse_sqrt2 = 0;  // 1 / sqrt(1 - b2^step)
  float keep = 1;           // 1 - lr * weight_decay
};

inline AdamWFactors FactorsOf(const AdamWParams& params) {
  const double correction1 = 1.0 - std::pow(static_cast<double>(params.beta1), static_cast<double>(params.step));
  const double correction2 = 1.0 - std::pow(static_cast<double>(params.beta2), static_cast<double>(params.step));
  return {static_cast<float>(static_cast<double>(params.lr) / correction1),
          static_cast<float>(1.0 / std::sqrt(correction2)), 1.0f - params.lr * params.weight_decay};
}

}  // namespace lockstep

#endif  // LOCKSTEP_ENGINE_KERNELS_ADAMW_H_
