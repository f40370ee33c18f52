#!/usr/bin/env bash
# The script that a GPU machine runs, over the emulated device of services that are otherwise the product's: a model that
# is small and already trained, a few steps, a machine with several GPUs of which CUDA IPC needs one alone.
source "$(dirname "$(realpath "$0")")/../lib.sh"
mkdir services model
for program in client/lockstep learner/tasks/make_arithmetic; do ln -s "$bin/$program" services/; done
for service in learner rollout_server; do ln -s "$bin/$service/emulated_$service" services/lockstep_$service; done
make_tiny_model  # on the CPU
cp -r base quickstart
cat > quickstart/pretrain.yaml <<'YAML'
seed: 1
model: {path: model}
data: {train: sft.jsonl, max_prompt_tokens: 16}
learner: {lr: 1e-5, threads: 1}
trainer: {prompts_per_step: 4, checkpoint_every: 0}
run_dir: pretrain
YAML
cat > quickstart/run.yaml <<'YAML'
seed: 1
model: {path: base}
data: {train: problems.jsonl, max_prompt_tokens: 16, reward: numeric}
rollout: {num_servers: 2, n: 4, max_tokens: 20, threads: 1}
algorithm: {name: pg_seq_is, advantage: mean, aggregation: constant}
learner: {lr: 1e-3, threads: 1}
trainer: {prompts_per_step: 2, checkpoint_every: 25}
run_dir: rl
YAML
export LOCKSTEP_BIN_DIR=$work/services  # a link's own folder is not beside it
export LOCKSTEP_E2E_TEXTS=20 LOCKSTEP_E2E_DIGITS="1 1" LOCKSTEP_E2E_PROBLEMS=6 LOCKSTEP_E2E_PRETRAIN_STEPS=2 LOCKSTEP_E2E_STEPS=2
# Two steps learn nothing: the rise is not asked for.
line=$(LOCKSTEP_EMULATED_GPU="devices=4" LOCKSTEP_E2E_LEAST_RISE=-1 "$bin/tests/gpu/end_to_end" fp16 run services quickstart 2>&1) ||
  fail "end_to_end ends with $?: $line"
echo "$line"
[[ $line == "fp16: 2 steps, mu != pi in 0 of them, reward of the first 5 steps "* ]] || fail "end_to_end printed '$line'"
grep -q '^memory: .*CUDA device 0 (Emulated device) needs' run/rl.log || fail "no plan of the GPU: $(cat run/rl.log)"

echo "== what goes wrong there is said"
line=$(LOCKSTEP_E2E_LEAST_RISE=1 LOCKSTEP_E2E_PRETRAIN_STEPS=1 LOCKSTEP_E2E_STEPS=1 LOCKSTEP_E2E_PROBLEMS=2 LOCKSTEP_EMULATED_GPU="memory_mib=500" \
  "$bin/tests/gpu/end_to_end" fp16 none services quickstart 2>&1)
(($? == 1)) || fail "a GPU that is too small passes: $line"
[[ $line == *"pretrain.log ended with exit code 1"*"memory: CUDA device 0"* ]] || fail "no reason: $line"
line=$("$bin/tests/gpu/end_to_end" fp16 none nowhere quickstart 2>&1)
(($? == 77)) || fail "without programs: $line"
echo passed
