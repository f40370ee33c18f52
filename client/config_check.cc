// Ranges and combinations of a run file that cannot work, each refused in one line before anything starts.
#include <sys/stat.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/config.h"

namespace lockstep {
namespace {

absl::Status OneOf(const std::string& key, const std::string& value, const std::vector<std::string>& allowed) {
  for (const std::string& name : allowed) {
    if (value == name) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(key, ": '", value, "' is unknown; use one of ", absl::StrJoin(allowed, ", ")));
}

absl::Status AtLeast(const std::string& key, double value, double least) {
  if (value >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(key, ": ", value, " is too small; use at least ", least));
}

absl::Status Within(const std::string& key, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(key, ": ", value, " is outside of [", low, ", ", high, "]"));
}

absl::Status Combination(const std::string& line) { return absl::InvalidArgumentError(line); }

bool Exists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

absl::Status CheckNames(const v1::RunConfig& c) {
  const std::vector<std::string> dtypes = {"fp16", "bf16", "fp32"};
  for (const absl::Status& status : {
           OneOf("numerics", c.numerics(), {"matched", "native"}),
           OneOf("rollout.dtype", c.rollout().dtype(), dtypes),
           OneOf("learner.dtype", c.learner().dtype(), dtypes),
           OneOf("data.reward", c.data().reward(), {"exact", "numeric", "math"}),
           OneOf("algorithm.name", c.algorithm().name(),
                 {"pg", "pg_token_is", "pg_token_tis", "pg_seq_is", "pg_seq_tis", "pg_seq_mis", "grpo"}),
           OneOf("algorithm.advantage", c.algorithm().advantage(), {"mean", "mean_std"}),
           OneOf("algorithm.aggregation", c.algorithm().aggregation(), {"constant", "sequence_mean", "token_mean"}),
           OneOf("algorithm.old_log_prob", c.algorithm().old_log_prob(), {"recompute", "rollout"}),
           OneOf("learner.loss_scale.mode", c.learner().loss_scale().mode(), {"auto", "dynamic", "off"}),
           OneOf("weight_sync.transport", c.weight_sync().transport(), {"gloo"}),
           OneOf("weight_sync.in_flight", c.weight_sync().in_flight(),
                 {"finish", "continue", "continue_stale_kv", "restart"}),
       }) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckRanges(const v1::RunConfig& c) {
  const auto& scale = c.learner().loss_scale();
  for (const absl::Status& status : {
           AtLeast("rollout.num_servers", c.rollout().num_servers(), 1),
           AtLeast("rollout.n", c.rollout().n(), 1),
           Within("rollout.temperature", c.rollout().temperature(), 0.01, 100),
           Within("rollout.top_p", c.rollout().top_p(), 1e-6, 1),
           AtLeast("rollout.max_tokens", c.rollout().max_tokens(), 1),
           Within("rollout.threads", c.rollout().threads(), 1, 256),
           AtLeast("rollout.prefill_chunk_tokens", c.rollout().prefill_chunk_tokens(), 1),
           AtLeast("rollout.max_batch_size", c.rollout().max_batch_size(), 1),
           AtLeast("rollout.max_groups_in_flight", c.rollout().max_groups_in_flight(), 1),
           AtLeast("rollout.group_timeout_seconds", c.rollout().group_timeout_seconds(), 1),
           AtLeast("data.max_prompt_tokens", c.data().max_prompt_tokens(), 1),
           AtLeast("algorithm.is_clip", c.algorithm().is_clip(), 0),
           AtLeast("algorithm.clip_low", c.algorithm().clip_low(), 0),
           AtLeast("algorithm.clip_high", c.algorithm().clip_high(), 0),
           AtLeast("learner.world_size", c.learner().world_size(), 1),
           AtLeast("learner.lr", c.learner().lr(), 0),
           Within("learner.beta1", c.learner().beta1(), 0, 0.999999),
           Within("learner.beta2", c.learner().beta2(), 0, 0.999999),
           AtLeast("learner.weight_decay", c.learner().weight_decay(), 0),
           AtLeast("learner.grad_clip", c.learner().grad_clip(), 0),
           AtLeast("learner.micro_batch_tokens", c.learner().micro_batch_tokens(), 1),
           Within("learner.threads", c.learner().threads(), 1, 256),
           AtLeast("learner.loss_scale.init", scale.init(), 1),
           AtLeast("learner.loss_scale.growth_factor", scale.growth_factor(), 1),
           Within("learner.loss_scale.backoff_factor", scale.backoff_factor(), 0.001, 0.999),
           AtLeast("learner.loss_scale.growth_interval", scale.growth_interval(), 1),
           AtLeast("weight_sync.bucket_mib", c.weight_sync().bucket_mib(), 1),
           AtLeast("weight_sync.timeout_seconds", c.weight_sync().timeout_seconds(), 1),
           AtLeast("trainer.prompts_per_step", c.trainer().prompts_per_step(), 1),
           AtLeast("trainer.updates_per_step", c.trainer().updates_per_step(), 1),
           AtLeast("trainer.max_steps", c.trainer().max_steps(), 1),
           Within("trainer.stop_reward", c.trainer().stop_reward(), 0, 1),
       }) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Which layers the model has is for the learner to say.
absl::Status CheckLora(const v1::RunConfig& c) {
  if (c.lora().rank() == 0) {
    if (c.model().adapter().empty()) return absl::OkStatus();
    return Combination("model.adapter: needs lora.rank, lora.alpha and lora.target_modules of the adapter");
  }
  if (c.lora().rank() > 1024) return Within("lora.rank", c.lora().rank(), 0, 1024);
  if (!(c.lora().alpha() > 0)) {
    return Combination(absl::StrCat("lora.alpha: ", c.lora().alpha(), " must be above 0"));
  }
  if (c.lora().dropout() != 0) {
    return Combination(absl::StrCat("lora.dropout: ", c.lora().dropout(),
                                    " is not supported: the learner's pi would not be the policy that sampled; use 0"));
  }
  std::set<std::string> seen;
  for (const std::string& name : c.lora().target_modules()) {
    const absl::Status status = OneOf("lora.target_modules", name,
                                      {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"});
    if (!status.ok()) return status;
    if (!seen.insert(name).second) {
      return Combination(absl::StrCat("lora.target_modules: '", name, "' is named twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateRunConfig(const v1::RunConfig& c) {
  if (absl::Status status = CheckNames(c); !status.ok()) return status;
  if (absl::Status status = CheckRanges(c); !status.ok()) return status;
  if (absl::Status status = CheckLora(c); !status.ok()) return status;
  if (c.run_dir().empty()) return Combination("run_dir: is empty; name the folder of the run");
  if (c.rollout().top_p() < 1 || c.rollout().top_k() > 0) {
    return Combination(
        "rollout.top_p/top_k: a run trains on the log-probs of the sampling distribution, and the learner does not "
        "apply "
        "top-p or top-k; set top_p: 1 and top_k: 0 (temperature is applied by both)");
  }
  if (c.algorithm().max_staleness() == 0 && c.weight_sync().in_flight() != "finish") {
    return Combination(absl::StrCat("weight_sync.in_flight: '", c.weight_sync().in_flight(),
                                    "' needs algorithm.max_staleness >= 1: with 0 nothing is in flight at an update"));
  }
  if (c.algorithm().name() == "pg" && c.algorithm().max_staleness() > 0) {
    return Combination(
        "algorithm.name: 'pg' has no correction for stale samples; set algorithm.max_staleness: 0 or use pg_seq_is");
  }
  if (c.trainer().prompts_per_step() % c.trainer().updates_per_step() != 0) {
    return Combination(absl::StrCat("trainer.updates_per_step: ", c.trainer().updates_per_step(),
                                    " does not divide trainer.prompts_per_step ", c.trainer().prompts_per_step()));
  }
  if (c.rollout().n() < 2 && c.algorithm().advantage() == "mean_std") {
    return Combination("algorithm.advantage: 'mean_std' needs rollout.n >= 2");
  }
  if (c.learner().dtype() == "fp16" && c.learner().loss_scale().mode() == "off") {
    return Combination(
        "learner.loss_scale.mode: 'off' with learner.dtype fp16 lets small gradients vanish; use auto, or dtype "
        "bf16/fp32");
  }
  return absl::OkStatus();
}

absl::Status CheckRunFiles(const v1::RunConfig& c, bool needs_tokenizer) {
  if (c.model().path().empty()) {
    return absl::InvalidArgumentError("model.path: is not set; name a Hugging Face model folder");
  }
  for (const char* file : {"", "/config.json", "/tokenizer.json"}) {
    if (!needs_tokenizer && std::string(file) == "/tokenizer.json") continue;
    if (!Exists(c.model().path() + file)) {
      return absl::NotFoundError(absl::StrCat("model.path: ", c.model().path(), file,
                                              " does not exist; it must be a Hugging Face folder with config.json, "
                                              "model.safetensors and tokenizer.json"));
    }
  }
  if (!c.model().adapter().empty() && !Exists(c.model().adapter() + "/adapter_config.json")) {
    return absl::NotFoundError(absl::StrCat("model.adapter: ", c.model().adapter(),
                                            "/adapter_config.json does not exist; name a PEFT adapter folder"));
  }
  if (c.data().train().empty()) {
    return absl::InvalidArgumentError("data.train: is not set; name a JSONL file with `prompt` and `answer` a line");
  }
  for (const std::string& path : {c.data().train(), c.data().eval()}) {
    if (!path.empty() && !Exists(path)) {
      return absl::NotFoundError(absl::StrCat("data: ", path, " does not exist; name a JSONL file"));
    }
  }
  return absl::OkStatus();
}

}  // namespace lockstep
