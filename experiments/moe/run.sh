#!/usr/bin/env bash
# Router replay on small mixtures of experts, one thread a process (about 10 minutes a model on two slow cores):
#   1. data and base model of deploy/quickstart.sh's task, with the config.json of model_4 or model_16,
#   2. the problems that it solves between 20% and 80% of the time,
#   3. FP16 and BF16 learners over an FP16 rollout, with learner.router_replay measure and replay: four short runs,
#   4. a table of the runs.
#   experiments/moe/run.sh 4|16 [FOLDER]
# Finished phases are kept. LOCKSTEP_BUILD_DIR names another folder than bazel-bin.
set -euo pipefail
cd "$(dirname "$0")/../.."
experts=${1:?run me as experiments/moe/run.sh 4 or 16}
here=experiments/moe
[[ -f $here/model_$experts/config.json ]] || { echo "moe: there is no $here/model_$experts; use 4 or 16" >&2; exit 2; }
dir=${2:-runs/moe_$experts}
bin=${LOCKSTEP_BUILD_DIR:-bazel-bin}
lockstep=$bin/client/lockstep
# Where the base still makes mistakes.
pretrain_steps=493
((experts == 16)) && pretrain_steps=400

if [[ ! -f $dir/problems.jsonl ]]; then
  mkdir -p "$dir/model"
  cp "$here/model_$experts/config.json" "$dir/model/"
  "$bin/learner/tasks/make_arithmetic" --count=40000 --seed=1 --min_digits=2 --max_digits=4 \
    --out_sft="$dir/sft.jsonl" --tokenizer_dir="$dir/model"
  "$bin/learner/tasks/make_arithmetic" --count=800 --seed=1000001 --min_digits=3 --max_digits=4 \
    --out_rl="$dir/problems.jsonl"
fi
if [[ ! -d $dir/base ]]; then
  rm -rf "$dir/pretrain"
  "$lockstep" pretrain "$here/pretrain.yaml" model.path="$dir/model" data.train="$dir/sft.jsonl" \
    trainer.max_steps=$pretrain_steps run_dir="$dir/pretrain"
  cp -r "$(find "$dir/pretrain/checkpoints" -maxdepth 1 -name 'step-*' | sort -V | tail -n 1)" "$dir/base"
fi
if [[ ! -f $dir/perfectible.jsonl ]]; then
  rm -rf "$dir/filter"
  "$lockstep" filter "$here/run.yaml" model.path="$dir/base" data.train="$dir/problems.jsonl" run_dir="$dir/filter" \
    --out="$dir/perfectible.jsonl" --samples=8 --low=0.2 --high=0.8
fi
for dtype in fp16 bf16; do
  for replay in measure replay; do
    run=$dir/$dtype-$replay
    [[ -f $run/done ]] && continue
    rm -rf "$run"
    "$lockstep" run "$here/run.yaml" model.path="$dir/base" data.train="$dir/perfectible.jsonl" run_dir="$run" \
      learner.dtype=$dtype learner.router_replay=$replay
    touch "$run/done"
  done
done

echo "| learner | router_replay | reward, first 5 / last 5 steps | kl_k3, mean | max abs log ratio, all steps / median step | router_mismatch, mean |"
echo "| --- | --- | --- | --- | --- | --- |"
for run in "$dir"/{fp16,bf16}-{measure,replay}; do
  name=${run##*/}
  jq -rs 'def mean(f): map(f) | add / length; map(.max_abs_log_ratio) as $max |
    [(.[:5] | mean(.reward_mean)), (.[-5:] | mean(.reward_mean)), mean(.kl_k3), ($max | max),
     ($max | sort | .[length / 2 | floor]), mean(.router_mismatch)] | @tsv' "$run/metrics.jsonl" |
    awk -v dtype="${name%-*}" -v replay="${name#*-}" \
      '{ printf "| %s | %s | %.3f / %.3f | %.1e | %.4f / %.4f | %.1e |\n", dtype, replay, $1, $2, $3, $4, $5, $6 }'
done
