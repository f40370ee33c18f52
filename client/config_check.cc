// Ranges and combinations of a run file that cannot work, each refused in one line before anything starts.
#include <sys/stat.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/config.h"
#include "proto/algorithms.h"

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

std::vector<std::string> AlgorithmNameList() {
  std::vector<std::string> names;
  for (const AlgorithmSpec& spec : Algorithms()) names.emplace_back(spec.name);
  return names;
}

absl::Status CheckNames(const v1::RunConfig& c) {
  const std::vector<std::string> dtypes = {"fp16", "bf16", "fp32"};
  for (const absl::Status& status : {
           OneOf("numerics", c.numerics(), {"matched", "native"}),
           OneOf("device", c.device(), {"cpu", "cuda"}),
           OneOf("rollout.dtype", c.rollout().dtype(), dtypes),
           OneOf("learner.dtype", c.learner().dtype(), dtypes),
           OneOf("data.reward", c.data().reward(), {"exact", "numeric", "math", "multiple_choice", "service"}),
           OneOf("algorithm.name", c.algorithm().name(), AlgorithmNameList()),
           OneOf("algorithm.advantage", c.algorithm().advantage(), {"mean", "mean_std"}),
           OneOf("algorithm.aggregation", c.algorithm().aggregation(), {"constant", "sequence_mean", "token_mean"}),
           OneOf("algorithm.old_log_prob", c.algorithm().old_log_prob(), {"recompute", "rollout"}),
           OneOf("learner.router_replay", c.learner().router_replay(), {"off", "measure", "replay"}),
           OneOf("learner.loss_scale.mode", c.learner().loss_scale().mode(), {"auto", "dynamic", "off"}),
           OneOf("weight_sync.transport", c.weight_sync().transport(), {"auto", "gloo", "nccl", "ipc"}),
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
           Within("data.reward_timeout_seconds", c.data().reward_timeout_seconds(), 0.1, 3600),
           AtLeast("algorithm.is_clip", c.algorithm().is_clip(), 0),
           AtLeast("algorithm.clip_low", c.algorithm().clip_low(), 0),
           AtLeast("algorithm.clip_high", c.algorithm().clip_high(), 0),
           Within("eval.n", c.eval().n(), 1, 1024),
           Within("eval.temperature", c.eval().temperature(), 0, 100),
           Within("eval.top_p", c.eval().top_p(), 1e-6, 1),
           AtLeast("algorithm.is_low", c.algorithm().is_low(), 0),
           AtLeast("algorithm.kl_beta", c.algorithm().kl_beta(), 0),
           Within("algorithm.dynamic_sampling_max_batches", c.algorithm().dynamic_sampling_max_batches(), 1, 1000),
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
           Within("weight_sync.bucket_mib", c.weight_sync().bucket_mib(), 0, 1024),
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

// Settings that the algorithm has no use for, or that take its sense away. The names are resolved.
absl::Status CheckAlgorithm(const v1::RunConfig& c) {
  const v1::AlgorithmConfig& a = c.algorithm();
  const std::string& name = a.name();
  const AlgorithmSpec& spec = *FindAlgorithm(name);
  const bool takes_is_clip = spec.is_clip > 0;
  if (!takes_is_clip && a.is_clip() > 0) {
    return Combination(absl::StrCat("algorithm.is_clip: '", name, "' has no bound on an importance weight; leave it ",
                                    "out, or use pg_token_tis, pg_seq_tis, pg_seq_mis, grpo_seq_mis, ..."));
  }
  if (spec.is_low == 0 && a.is_low() > 0) {
    return Combination(absl::StrCat("algorithm.is_low: '", name, "' has no two-sided mask; leave it out, or use ",
                                    "icepop, pg_geo_rs or pg_geo_mis"));
  }
  if (a.is_low() > 0 && a.is_low() >= a.is_clip()) {
    return Combination(
        absl::StrCat("algorithm.is_low: ", a.is_low(), " must be below algorithm.is_clip ", a.is_clip()));
  }
  if (!spec.clips() && (a.clip_low() > 0 || a.clip_high() > 0)) {
    return Combination(absl::StrCat("algorithm.clip_low/clip_high: '", name,
                                    "' clips no ratio; leave them out, or use ", "grpo, gspo or cispo"));
  }
  if (spec.fixed && (a.advantage() != spec.advantage || a.aggregation() != spec.aggregation)) {
    return Combination(absl::StrCat("algorithm.name: '", name, "' means advantage: ", std::string(spec.advantage),
                                    " and aggregation: ", std::string(spec.aggregation),
                                    "; leave both at auto, or use grpo"));
  }
  if (name == "gspo" && a.aggregation() != "sequence_mean") {
    return Combination(absl::StrCat("algorithm.aggregation: gspo has one ratio a sequence, which '", a.aggregation(),
                                    "' would weigh by its length; use sequence_mean"));
  }
  if (spec.corrects_old() && a.old_log_prob() == "rollout") {
    return Combination(absl::StrCat("algorithm.old_log_prob: 'rollout' makes the weight pi_old / mu of '", name,
                                    "' always 1; use recompute, or grpo"));
  }
  if (a.max_staleness() > 0 && !spec.uses_mu && !(spec.uses_old && a.old_log_prob() == "rollout")) {
    return Combination(absl::StrCat("algorithm.name: '", name, "' has no correction for stale samples; set ",
                                    "algorithm.max_staleness: 0",
                                    spec.uses_old ? ", algorithm.old_log_prob: rollout," : "", " or use pg_seq_is"));
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

absl::Status ValidateRunConfig(const v1::RunConfig& given) {
  v1::RunConfig c = given;
  ResolveAlgorithm(c.mutable_algorithm());
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
  if (c.trainer().eval_every() > 0 && c.data().eval().empty()) {
    return Combination(absl::StrCat("trainer.eval_every: ", c.trainer().eval_every(),
                                    " evaluates on data.eval, which is not set; name a JSONL file, or set 0"));
  }
  if (c.eval().temperature() == 0 && c.eval().n() > 1) {
    return Combination(absl::StrCat("eval.temperature: 0 is greedy, and all ", c.eval().n(),
                                    " samples (eval.n) would be the same; set eval.n: 1 or a temperature above 0"));
  }
  if (c.eval().temperature() > 0 && c.eval().temperature() < 0.01) {
    return Combination(absl::StrCat("eval.temperature: ", c.eval().temperature(), " is below 0.01; use 0 for greedy"));
  }
  if (c.data().reward() == "service" && c.data().reward_address().find(':') == std::string::npos) {
    return Combination(absl::StrCat("data.reward_address: '", c.data().reward_address(),
                                    "' is no host:port; data.reward: service needs the address of a reward service"));
  }
  if (c.data().reward() != "service" && !c.data().reward_address().empty()) {
    return Combination(absl::StrCat("data.reward_address: is set, but data.reward is '", c.data().reward(),
                                    "'; set data.reward: service, or leave the address out"));
  }
  if (c.algorithm().max_staleness() == 0 && c.weight_sync().in_flight() != "finish") {
    return Combination(absl::StrCat("weight_sync.in_flight: '", c.weight_sync().in_flight(),
                                    "' needs algorithm.max_staleness >= 1: with 0 nothing is in flight at an update"));
  }
  if (absl::Status status = CheckAlgorithm(c); !status.ok()) return status;
  if (c.trainer().prompts_per_step() % c.trainer().updates_per_step() != 0) {
    return Combination(absl::StrCat("trainer.updates_per_step: ", c.trainer().updates_per_step(),
                                    " does not divide trainer.prompts_per_step ", c.trainer().prompts_per_step()));
  }
  if (c.algorithm().dynamic_sampling() && c.rollout().n() < 2) {
    return Combination("algorithm.dynamic_sampling: needs rollout.n >= 2: one sample alone never has an advantage");
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

absl::Status CheckModelFolder(const v1::RunConfig& c, bool needs_tokenizer) {
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
  return absl::OkStatus();
}

absl::Status CheckDataFile(const std::string& key, const std::string& path) {
  if (path.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, ": is not set; name a JSONL file with `prompt` and `answer` a line"));
  }
  if (!Exists(path)) return absl::NotFoundError(absl::StrCat("data: ", path, " does not exist; name a JSONL file"));
  return absl::OkStatus();
}

absl::Status CheckRunFiles(const v1::RunConfig& c, bool needs_tokenizer) {
  if (absl::Status status = CheckModelFolder(c, needs_tokenizer); !status.ok()) return status;
  if (absl::Status status = CheckDataFile("data.train", c.data().train()); !status.ok()) return status;
  return c.data().eval().empty() ? absl::OkStatus() : CheckDataFile("data.eval", c.data().eval());
}

}  // namespace lockstep
