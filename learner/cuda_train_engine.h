// Training on a GPU, over engine/cuda: weights, gradient, masters and moments in device memory, and forward, backward,
// norm and AdamW there. The host has copies of the state only where a checkpoint, an update over the host or LoRA asks
// for them; what updates by nccl or ipc send is rounded on the device (device_params).
//
// LoRA: adapters are trained on the device and merged on the host, from the base's files, as the CPU does; the merged
// parameters then go to the device. The bits of the merged weights are the CPU's.
#ifndef LOCKSTEP_LEARNER_CUDA_TRAIN_ENGINE_H_
#define LOCKSTEP_LEARNER_CUDA_TRAIN_ENGINE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "engine/cuda/owned_gemm.h"
#include "learner/train_engine.h"

namespace lockstep {

// On the current device of the thread, which makes all calls. INVALID_ARGUMENT: a model that the device's kernels do
// not take. RESOURCE_EXHAUSTED: weights, gradient or moments do not fit. Errors of LoraBase::Load.
absl::StatusOr<std::unique_ptr<TrainEngine>> MakeCudaTrainEngine(const TrainEngineOptions& options,
                                                                 cuda::OwnedGemm gemm);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_CUDA_TRAIN_ENGINE_H_
