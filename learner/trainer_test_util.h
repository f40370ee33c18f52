// What the tests of the trainer share: a model that steps in milliseconds, its options, samples by Philox.
#ifndef LOCKSTEP_LEARNER_TRAINER_TEST_UTIL_H_
#define LOCKSTEP_LEARNER_TRAINER_TEST_UTIL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "learner/cpu_train_engine.h"
#include "learner/trainer.h"

namespace lockstep {

ModelConfig TinyConfig();
// pg_seq_is on TinyConfig; the learning rate is the test's to set.
TrainerOptions TinyOptions(DType dtype);
// With small random weights, and their reference where the options want one.
std::unique_ptr<Trainer> MakeFreshTrainer(const TrainerOptions& options, Collectives* collectives,
                                          const TrainEngineFactory& engine = MakeCpuTrainEngine);
std::vector<TrainSample> MakeSamples(int count);
std::vector<float> Copy(const float* data, int64_t n);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_TRAINER_TEST_UTIL_H_
