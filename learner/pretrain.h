// Supervised training on prompt and response, rank 0: makes a base model. Progress goes the same ways as that of a
// reinforcement learning run; a batch is trainer.prompts_per_step problems.
#ifndef LOCKSTEP_LEARNER_PRETRAIN_H_
#define LOCKSTEP_LEARNER_PRETRAIN_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "learner/dataset.h"
#include "learner/run_folder.h"
#include "learner/run_monitor.h"
#include "learner/step_message.h"
#include "learner/tensorboard_log.h"
#include "learner/trainer.h"
#include "proto/run_config.pb.h"

namespace lockstep {

struct PretrainParts {
  v1::RunConfig config;
  RunPosition position;
  const std::vector<Problem>* problems = nullptr;
  Trainer* trainer = nullptr;
  RankLeader* ranks = nullptr;
  Checkpoints* checkpoints = nullptr;
  const MetricsFile* metrics_file = nullptr;
  TensorBoardLog* tensorboard = nullptr;
  RunMonitor* monitor = nullptr;
  MetricsRegistry* metrics = nullptr;
  std::function<bool()> terminated;
};

// Until max_steps, a stop command or SIGTERM; ends with a checkpoint and the other ranks told.
absl::Status Pretrain(const PretrainParts& parts);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_PRETRAIN_H_
