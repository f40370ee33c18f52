// Steps on the CPU: Decoder, KvStorage and Sampler over one Ops.
#ifndef LOCKSTEP_ROLLOUT_SERVER_CPU_BACKEND_H_
#define LOCKSTEP_ROLLOUT_SERVER_CPU_BACKEND_H_

#include <memory>

#include "engine/kernels/ops.h"
#include "rollout_server/step_backend.h"

namespace lockstep {

// ops outlives the backend.
std::unique_ptr<StepBackend> MakeCpuBackend(const ModelConfig& config, DType dtype, int64_t num_pages, Ops* ops);
// The same with an Ops of its own.
std::unique_ptr<StepBackend> MakeCpuBackend(const ModelConfig& config, DType dtype, int64_t num_pages,
                                            std::unique_ptr<Ops> ops);

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_CPU_BACKEND_H_
