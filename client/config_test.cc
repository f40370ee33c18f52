#include "client/config.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace lockstep {
namespace {

std::string Refusal(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  const auto config = ParseRunConfig(yaml, "run.yaml", overrides);
  if (config.ok()) return "accepted";
  return std::string(config.status().message().data(), config.status().message().size());
}

TEST(ConfigTest, DefaultsAreValid) { EXPECT_TRUE(ValidateRunConfig(DefaultRunConfig()).ok()); }

TEST(ConfigTest, ReadsSectionsListsAndOverridesInThisOrder) {
  const auto config = ParseRunConfig(
      "seed: 7\nrollout:\n  n: 4\n  addresses: [a:1, b:2]\nlearner:\n  lr: 3e-4\n  loss_scale: {init: 1024}\n",
      "run.yaml", {"rollout.n=16", "learner.activation_recompute=true"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->seed(), 7u);
  EXPECT_EQ(config->rollout().n(), 16u);
  ASSERT_EQ(config->rollout().addresses_size(), 2);
  EXPECT_EQ(config->rollout().addresses(1), "b:2");
  EXPECT_FLOAT_EQ(config->learner().lr(), 3e-4f);
  EXPECT_FLOAT_EQ(config->learner().loss_scale().init(), 1024);
  EXPECT_TRUE(config->learner().activation_recompute());
  EXPECT_EQ(config->rollout().dtype(), "fp16");
}

TEST(ConfigTest, TakesTheNamesOfVerl) {
  const auto config = ParseRunConfig(
      "actor_rollout_ref:\n  rollout:\n    n: 5\n  actor:\n    optim:\n      lr: 1e-5\ndata:\n  train_files: x.jsonl\n",
      "run.yaml", {"trainer.save_freq=3", "actor_rollout_ref.rollout.val_kwargs.n=2"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rollout().n(), 5u);
  EXPECT_FLOAT_EQ(config->learner().lr(), 1e-5f);
  EXPECT_EQ(config->data().train(), "x.jsonl");
  EXPECT_EQ(config->trainer().checkpoint_every(), 3u);
  EXPECT_EQ(config->eval().n(), 2u);
}

TEST(ConfigTest, WhatItWritesItReads) {
  v1::RunConfig config = *ParseRunConfig("", "run.yaml", {"algorithm.name=grpo_seq_mis"});
  config.mutable_data()->set_prompt_template("a \"b\"\n{prompt}\\");
  config.mutable_rollout()->add_addresses("h:1");
  const auto again = ParseRunConfig(RunConfigToYaml(config), "config.yaml", {});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->SerializeAsString(), config.SerializeAsString());
}

TEST(ConfigTest, RefusesEachBadFileInOneLineWithPlaceAndWayOut) {
  struct Case {
    std::string yaml;
    std::string line;
  };
  const std::vector<Case> cases = {
      {"trainer: {eval_every: 5}\n",
       "run.yaml: trainer.eval_every: 5 evaluates on data.eval, which is not set; name a JSONL file, or set 0"},
      {"eval: {temperature: 0}\n",
       "run.yaml: eval.temperature: 0 is greedy, and all 32 samples (eval.n) would be the same; set eval.n: 1 or a "
       "temperature above 0"},
      {"eval: {n: 2000}\n", "run.yaml: eval.n: 2000 is outside of [1, 1024]"},
      {"rollout:\n  temprature: 1\n", "run.yaml:2: rollout.temprature: unknown key; did you mean rollout.temperature?"},
      {"rolout:\n  n: 1\n", "run.yaml:1: rolout: unknown key; did you mean rollout.n?"},
      {"learner:\n  temperature: 1\n",
       "run.yaml:2: learner.temperature: unknown key; did you mean rollout.temperature?"},
      {"lr: 1\n", "run.yaml:1: lr: unknown key; did you mean learner.lr?"},
      {"rollout:\n  n: four\n", "run.yaml:2: rollout.n: 'four' is not a whole number >= 0"},
      {"rollout:\n  n: -1\n", "run.yaml:2: rollout.n: '-1' is not a whole number >= 0"},
      {"rollout:\n  n: 1.5\n", "run.yaml:2: rollout.n: '1.5' is not a whole number >= 0"},
      {"rollout:\n  n: 99999999999\n", "run.yaml:2: rollout.n: '99999999999' is not a whole number >= 0"},
      {"learner:\n  lr: fast\n", "run.yaml:2: learner.lr: 'fast' is not a number"},
      {"learner:\n  lr: nan\n", "run.yaml:2: learner.lr: 'nan' is not a number"},
      {"data:\n  shuffle: maybe\n", "run.yaml:2: data.shuffle: 'maybe' is not true or false"},
      {"rollout: 5\n", "run.yaml:1: rollout: must be a section of `key: value` lines"},
      {"- a\n- b\n", "run.yaml:1: (top level): must be a section of `key: value` lines"},
      {"rollout:\n  n: [1]\n", "run.yaml:2: rollout.n: must be a whole number >= 0, not a section or list"},
      {"rollout:\n  addresses: {a: b}\n", "run.yaml:2: rollout.addresses: must be a list"},
      {"rollout:\n  n: 1\n  n: 2\n", "run.yaml:3: rollout.n: is given twice (rollout.n); remove one"},
      {"rollout:\n  n: 1\nactor_rollout_ref: {rollout: {n: 2}}\n",
       "run.yaml:3: actor_rollout_ref.rollout.n: is given twice (rollout.n); remove one"},
      {"rollout: [\n", "run.yaml:2: not YAML: end of sequence flow not found; check indentation and quotes"},
      {"rollout:\n  dtype: int8\n", "run.yaml: rollout.dtype: 'int8' is unknown; use one of fp16, bf16, fp32"},
      {"learner:\n  dtype: half\n", "run.yaml: learner.dtype: 'half' is unknown; use one of fp16, bf16, fp32"},
      {"numerics: exact\n", "run.yaml: numerics: 'exact' is unknown; use one of matched, native"},
      {"device: gpu\n", "run.yaml: device: 'gpu' is unknown; use one of cpu, cuda"},
      {"algorithm:\n  name: ppo\n",
       "run.yaml: algorithm.name: 'ppo' is unknown; use one of pg, reinforce, pg_token_is, pg_token_tis, pg_seq_is, "
       "pg_seq_tis, pg_seq_mis, pg_geo_rs, pg_geo_mis, grpo, dr_grpo, dapo, grpo_token_tis, grpo_seq_tis, "
       "grpo_seq_mis, decoupled_ppo, icepop, gspo, cispo"},
      {"data:\n  reward: bleu\n",
       "run.yaml: data.reward: 'bleu' is unknown; use one of exact, numeric, math, "
       "multiple_choice, service"},
      {"weight_sync:\n  transport: mpi\n",
       "run.yaml: weight_sync.transport: 'mpi' is unknown; use one of auto, gloo, nccl, ipc"},
      {"rollout:\n  temperature: 0\n", "run.yaml: rollout.temperature: 0 is outside of [0.01, 100]"},
      {"rollout:\n  max_tokens: 0\n", "run.yaml: rollout.max_tokens: 0 is too small; use at least 1"},
      {"learner:\n  threads: 0\n", "run.yaml: learner.threads: 0 is outside of [1, 256]"},
      {"trainer:\n  stop_reward: 2\n", "run.yaml: trainer.stop_reward: 2 is outside of [0, 1]"},
      {"run_dir: \"\"\n", "run.yaml: run_dir: is empty; name the folder of the run"},
      {"rollout:\n  top_p: 0.9\n",
       "run.yaml: rollout.top_p/top_k: a run trains on the log-probs of the sampling distribution, and the learner "
       "does "
       "not apply top-p or top-k; set top_p: 1 and top_k: 0 (temperature is applied by both)"},
      {"weight_sync:\n  in_flight: continue\n",
       "run.yaml: weight_sync.in_flight: 'continue' needs algorithm.max_staleness >= 1: with 0 nothing is in flight at "
       "an "
       "update"},
      {"algorithm: {name: pg, max_staleness: 1}\n",
       "run.yaml: algorithm.name: 'pg' has no correction for stale samples; set algorithm.max_staleness: 0 or use "
       "pg_seq_is"},
      {"algorithm: {name: gspo, max_staleness: 1}\n",
       "run.yaml: algorithm.name: 'gspo' has no correction for stale samples; set algorithm.max_staleness: 0, "
       "algorithm.old_log_prob: rollout, or use pg_seq_is"},
      {"algorithm: {name: grpo, is_clip: 2}\n",
       "run.yaml: algorithm.is_clip: 'grpo' has no bound on an importance weight; leave it out, or use pg_token_tis, "
       "pg_seq_tis, pg_seq_mis, grpo_seq_mis, ..."},
      {"algorithm: {name: gspo, is_low: 0.5}\n",
       "run.yaml: algorithm.is_low: 'gspo' has no two-sided mask; leave it out, or use icepop, pg_geo_rs or "
       "pg_geo_mis"},
      {"algorithm: {name: icepop, is_clip: 0.25}\n",
       "run.yaml: algorithm.is_low: 0.5 must be below algorithm.is_clip 0.25"},
      {"algorithm: {name: pg_seq_is, clip_high: 0.28}\n",
       "run.yaml: algorithm.clip_low/clip_high: 'pg_seq_is' clips no ratio; leave them out, or use grpo, gspo or "
       "cispo"},
      {"algorithm: {name: gspo, aggregation: token_mean}\n",
       "run.yaml: algorithm.aggregation: gspo has one ratio a sequence, which 'token_mean' would weigh by its length; "
       "use sequence_mean"},
      {"algorithm: {name: dr_grpo, advantage: mean_std}\n",
       "run.yaml: algorithm.name: 'dr_grpo' means advantage: mean and aggregation: constant; leave both at auto, or "
       "use "
       "grpo"},
      {"algorithm: {name: grpo_token_tis, old_log_prob: rollout}\n",
       "run.yaml: algorithm.old_log_prob: 'rollout' makes the weight pi_old / mu of 'grpo_token_tis' always 1; use "
       "recompute, or grpo"},
      {"algorithm: {dynamic_sampling: true}\nrollout: {n: 1}\n",
       "run.yaml: algorithm.dynamic_sampling: needs rollout.n >= 2: one sample alone never has an advantage"},
      {"algorithm: {kl_beta: -1}\n", "run.yaml: algorithm.kl_beta: -1 is too small; use at least 0"},
      {"trainer: {prompts_per_step: 10, updates_per_step: 3}\n",
       "run.yaml: trainer.updates_per_step: 3 does not divide trainer.prompts_per_step 10"},
      {"rollout: {n: 1}\nalgorithm: {advantage: mean_std}\n",
       "run.yaml: algorithm.advantage: 'mean_std' needs rollout.n >= 2"},
      {"lora: {rank: 4, alpha: 0}\n", "run.yaml: lora.alpha: 0 must be above 0"},
      {"lora: {rank: 2000}\n", "run.yaml: lora.rank: 2000 is outside of [0, 1024]"},
      {"lora: {rank: 4, dropout: 0.1}\n",
       "run.yaml: lora.dropout: 0.1 is not supported: the learner's pi would not be the policy that sampled; use 0"},
      {"lora: {rank: 4, target_modules: [q_proj, lm_head]}\n",
       "run.yaml: lora.target_modules: 'lm_head' is unknown; use one of q_proj, k_proj, v_proj, o_proj, gate_proj, "
       "up_proj, down_proj"},
      {"lora: {rank: 4, target_modules: [q_proj, q_proj]}\n", "run.yaml: lora.target_modules: 'q_proj' is named twice"},
      {"model: {adapter: a}\n",
       "run.yaml: model.adapter: needs lora.rank, lora.alpha and lora.target_modules of the adapter"},
      {"learner: {loss_scale: {mode: \"off\"}}\n",
       "run.yaml: learner.loss_scale.mode: 'off' with learner.dtype fp16 lets small gradients vanish; use auto, or "
       "dtype "
       "bf16/fp32"},
  };
  for (const Case& test : cases) EXPECT_EQ(Refusal(test.yaml), test.line) << test.yaml;
}

TEST(ConfigTest, AlgorithmsBringTheirOwnConstantsUnlessTheFileSaysOtherwise) {
  const auto own = ParseRunConfig("algorithm: {name: grpo_seq_mis}\n", "run.yaml", {});
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_FLOAT_EQ(own->algorithm().is_clip(), 10);
  EXPECT_FLOAT_EQ(own->algorithm().clip_high(), 0.2f);
  EXPECT_EQ(own->algorithm().advantage(), "mean_std");
  // What the paper's scripts run under the name GRPO-Seq-MIS.
  const auto paper = ParseRunConfig("algorithm: {name: grpo_seq_mis, advantage: mean, aggregation: constant}\n",
                                    "run.yaml", {"algorithm.clip_high=0.28"});
  ASSERT_TRUE(paper.ok()) << paper.status();
  EXPECT_EQ(paper->algorithm().advantage(), "mean");
  EXPECT_EQ(paper->algorithm().aggregation(), "constant");
  EXPECT_FLOAT_EQ(paper->algorithm().clip_high(), 0.28f);
}

TEST(ConfigTest, RefusesBadOverridesByTheCommandLine) {
  EXPECT_EQ(Refusal("", {"rollout.n"}), "command line: 'rollout.n' is not key=value, for example rollout.n=16");
  EXPECT_EQ(Refusal("", {"rollout.m=2"}), "command line: rollout.m: unknown key; did you mean rollout.n?");
  EXPECT_EQ(Refusal("", {"rollout.n=x"}), "command line: rollout.n: 'x' is not a whole number >= 0");
}

TEST(ConfigTest, NamesTheMissingFile) {
  v1::RunConfig config = DefaultRunConfig();
  EXPECT_EQ(std::string(CheckRunFiles(config, true).message()),
            "model.path: is not set; name a Hugging Face model folder");
  config.mutable_model()->set_path("/nonexistent/model");
  EXPECT_EQ(std::string(CheckRunFiles(config, true).message()),
            "model.path: /nonexistent/model does not exist; it must be a Hugging Face folder with config.json, "
            "model.safetensors and tokenizer.json");
}

}  // namespace
}  // namespace lockstep
