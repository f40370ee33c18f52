// Steps on a GPU, over engine/cuda: weights, KV pages, decoder and sampler in device memory; from step to step the host
// sends tokens and page tables and gets tokens and log-probs. Steps of decode rows alone are CUDA graphs.
//
// Each call sets the thread's device.
#ifndef LOCKSTEP_ROLLOUT_SERVER_CUDA_BACKEND_H_
#define LOCKSTEP_ROLLOUT_SERVER_CUDA_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "engine/cuda/owned_gemm.h"
#include "rollout_server/device_backend.h"

namespace lockstep {

// INVALID_ARGUMENT: a model that the device's kernels do not take. RESOURCE_EXHAUSTED: it does not fit.
// kv_cache_mib 0: pages for max_decode_rows sequences of max_sequence_tokens, at most half of what the weights, twice,
// leave free. A set of weights that is not used any more is overwritten by the next one: at most three and one take
// memory, under `finish`, else two. Updates that fill device memory (device_shadow) take one of these, and what
// SetWriter::Bytes says.
absl::StatusOr<std::unique_ptr<StepBackend>> MakeCudaStepBackend(const DeviceBackendOptions& options,
                                                                 cuda::OwnedGemm gemm);

}  // namespace lockstep

#endif  // LOCKSTEP_ROLLOUT_SERVER_CUDA_BACKEND_H_
