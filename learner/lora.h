// LoRA in the trainer: the frozen base, and merging adapters into the weights that both engines compute with.
//
// Held: the merged weights in learner.dtype (the trainer's own copy), and of the adapters FP32 values, moments and
// gradients. Not held: the base. It is read again from the model folder's files (through the page cache) at every
// merge, a block of rows at a time, so there is no FP32 arena of the model's size in a learner that trains adapters.
#ifndef LOCKSTEP_LEARNER_LORA_H_
#define LOCKSTEP_LEARNER_LORA_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/model/low_rank.h"
#include "proto/run_config.pb.h"

namespace lockstep {

struct LoraOptions {
  v1::LoraConfig config;  // rank 0: no LoRA
  std::string base_dir;   // the Hugging Face folder with the base's weights
  bool clamp_fp16 = false;
};

class LoraBase {
 public:
  // Loads the base into `weights`, all parameters. Errors are those of LoadHfArena and MakeLowRankLayout.
  static absl::StatusOr<std::unique_ptr<LoraBase>> Load(const LoraOptions& options, int threads, Weights* weights);

  const LowRankLayout& layout() const { return layout_; }
  // All parameters of `weights` become the base's, without adapters: a reference policy.
  absl::Status LoadBase(Weights* weights) const;
  // The adapted parameters of `weights` become round(base + scale B A). adapters [layout().total_size].
  absl::Status Merge(const float* adapters, Weights* weights) const;
  // What a checkpoint's adapters belong to: rank, alpha, modules, and the digest of the base rounded to the weights'
  // dtype. Equal on all ranks and after a resume.
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  LoraBase() = default;
  LowRankLayout layout_;
  std::unique_ptr<HfFolderReader> reader_;
  LoadOptions load_;
  std::vector<bool> adapted_;  // [params]
  std::string fingerprint_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_LORA_H_
