// Training on the CPU: Decoder over its kernels, state in arenas of the host.
#ifndef LOCKSTEP_LEARNER_CPU_TRAIN_ENGINE_H_
#define LOCKSTEP_LEARNER_CPU_TRAIN_ENGINE_H_

#include <memory>

#include "learner/train_engine.h"

namespace lockstep {

// All state is zero; with LoRA the base is loaded here. Errors: LoraBase::Load.
absl::StatusOr<std::unique_ptr<TrainEngine>> MakeCpuTrainEngine(const TrainEngineOptions& options);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_CPU_TRAIN_ENGINE_H_
