// What decoding for a rollout server is made for on a device, and the memory that it takes there: by this the server's
// backend allocates (rollout_server/cuda_backend.h), and by this a run's plan says so before (learner/device_plan.h).
#ifndef LOCKSTEP_ENGINE_CUDA_SERVING_H_
#define LOCKSTEP_ENGINE_CUDA_SERVING_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/cuda/decode_step.h"
#include "engine/cuda/mixed_step.h"
#include "engine/kernels/ops.h"

namespace lockstep::cuda {

struct ServingShape {
  ModelConfig config;
  DType dtype = DType::kF16;
  Numerics numerics = Numerics::kMatched;
  int64_t max_decode_rows = 0;
  int64_t prefill_chunk_tokens = 0;
  int64_t max_sequence_tokens = 0;
};

struct ServingLimits {
  DecodeStep::Limits decode;
  PagedLimits decoder;
  MixedStep::Limits mixed;  // draws in the decode step's scratch
};
ServingLimits ServingLimitsOf(const ServingShape& shape);

// Decoder, decode step and mixed step, as they are made.
size_t ServingScratchBytes(const ServingShape& shape);
// What steps take beyond that: with `routing` the experts that they record.
size_t ServingStepBytes(const ServingShape& shape, bool routing);

// Pages of the KV cache: as many as kv_cache_mib has, or, where it is 0, for all sequences at their longest, at most
// half of what two sets of weights leave of free_bytes. RESOURCE_EXHAUSTED: fewer than one sequence may take.
absl::StatusOr<int64_t> ServingPages(const ServingShape& shape, uint64_t kv_cache_mib, size_t free_bytes);

}  // namespace lockstep::cuda

#endif  // LOCKSTEP_ENGINE_CUDA_SERVING_H_
