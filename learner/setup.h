// What every mode of the learner loads before it starts: config, tokenizer, model, data. Errors are one line each and
// come before anything listens or trains.
#ifndef LOCKSTEP_LEARNER_SETUP_H_
#define LOCKSTEP_LEARNER_SETUP_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "engine/tokenizer/tokenizer.h"
#include "learner/collectives.h"
#include "learner/dataset.h"
#include "learner/trainer.h"
#include "proto/run_config.pb.h"

namespace lockstep {

enum class LearnerMode { kReinforce, kPretrain, kFilter, kEval };

// "rl", "pretrain", "filter", "eval".
absl::StatusOr<LearnerMode> ParseLearnerMode(const std::string& name);

struct LearnerSetup {
  v1::RunConfig config;
  LearnerMode mode = LearnerMode::kReinforce;
  std::string run_id;  // last part of run_dir
  ModelConfig model;
  DType learner_dtype = DType::kF16;
  DType rollout_dtype = DType::kF16;
  Numerics numerics = Numerics::kMatched;
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<int32_t> stop_token_ids;  // ends a response; ascending
  std::vector<Problem> problems;        // data.train; mode eval has none
  std::vector<Problem> eval_problems;   // data.eval, at most eval.max_problems; empty where nothing is evaluated

  int process = 0;  // number of this one among the run's on this machine; chooses the GPU

  std::string RunFile(const std::string& name) const { return config.run_dir() + "/" + name; }
};

// RunConfig in protobuf text form.
absl::StatusOr<v1::RunConfig> ReadRunConfig(const std::string& path);
// Loads and cross-checks; makes run_dir. Ranks above 0 load no data.
absl::StatusOr<LearnerSetup> LoadLearnerSetup(const v1::RunConfig& config, LearnerMode mode, bool with_data);
absl::StatusOr<std::unique_ptr<Trainer>> MakeTrainer(const LearnerSetup& setup, Collectives* collectives);
// With LoRA the adapters from model.adapter, or new ones by seed. Otherwise the masters from model.path; in
// pretraining, where the folder has no weights, random ones by seed.
absl::Status LoadInitialWeights(const LearnerSetup& setup, Trainer& trainer);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_SETUP_H_
