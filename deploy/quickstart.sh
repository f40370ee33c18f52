#!/usr/bin/env bash
# README command one: installs what is missing, builds, and runs the main job on this machine:
#   1. a small base model by supervised training on generated additions with written-out steps,
#   2. the problems that it solves between 20% and 80% of the time (16 samples each),
#   3. reinforcement learning with PG-Seq-IS in FP16, two rollout servers and one learner, until the reward passes 0.95,
#   4. a Hugging Face checkpoint, a table, and runs/quickstart/summary.json.
#   deploy/quickstart.sh [--seed=N] [--dir=runs/quickstart] [--skip-build]
# Finished phases are kept: a second call goes on where the first one stopped. Remove the folder to begin again.
set -euo pipefail
cd "$(dirname "$0")/.."

seed=1
dir=runs/quickstart
build=1
for argument in "$@"; do
  case $argument in
    --seed=*) seed=${argument#--seed=} ;;
    --dir=*) dir=${argument#--dir=} ;;
    --skip-build) build=0 ;;
    *)
      echo "quickstart: '$argument' is unknown; use --seed=N, --dir=FOLDER or --skip-build" >&2
      exit 2
      ;;
  esac
done
if ! [[ $seed =~ ^[0-9]+$ ]]; then
  echo "quickstart: --seed=$seed is not a whole number" >&2
  exit 2
fi

targets=(//client:lockstep //engine/tokenizer:lockstep_tokenize //learner:lockstep_learner //learner:lockstep_grade
  //learner:lockstep_score //learner:lockstep_make_model //learner:lockstep_mismatch
  //rollout_server:lockstep_rollout_server
  //learner/tasks:make_arithmetic)
if ((build)); then
  deploy/install_deps.sh
  echo "quickstart: building (some minutes the first time)"
  bazel build --noshow_progress "${targets[@]}"
fi
bin=${LOCKSTEP_BUILD_DIR:-bazel-bin}
lockstep=$bin/client/lockstep

mkdir -p "$dir"
if [[ -f $dir/seed && $(<"$dir/seed") != "$seed" ]]; then
  echo "quickstart: $dir holds a run with seed $(<"$dir/seed"); name another --dir, or remove it" >&2
  exit 2
fi
echo "$seed" > "$dir/seed"

# phase NAME COMMAND...: runs it once, and keeps its seconds for the table.
phase() {
  local name=$1
  shift
  if [[ -f $dir/$name.seconds ]]; then
    echo "quickstart: $name is done already"
    return
  fi
  echo "quickstart: $name"
  local begin=$EPOCHREALTIME
  "$@"
  awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f\n", b - a }' > "$dir/$name.seconds"
}

make_data() {
  mkdir -p "$dir/model"
  cp deploy/quickstart/model/config.json "$dir/model/config.json"
  "$bin/learner/tasks/make_arithmetic" --count=40000 --seed="$seed" --min_digits=2 --max_digits=4 \
    --out_sft="$dir/sft.jsonl" --tokenizer_dir="$dir/model"
  "$bin/learner/tasks/make_arithmetic" --count=800 --seed="$((seed + 1000000))" --min_digits=3 --max_digits=4 \
    --out_rl="$dir/problems.jsonl"
}

pretrain() {
  rm -rf "$dir/pretrain"
  "$lockstep" pretrain deploy/quickstart/pretrain.yaml seed="$seed" model.path="$dir/model" \
    data.train="$dir/sft.jsonl" run_dir="$dir/pretrain"
  local last
  last=$(find "$dir/pretrain/checkpoints" -maxdepth 1 -name 'step-*' | sort -V | tail -n 1)
  rm -rf "$dir/base"
  cp -r "$last" "$dir/base"
}

filter() {
  rm -rf "$dir/filter"
  "$lockstep" filter deploy/quickstart/run.yaml seed="$seed" model.path="$dir/base" data.train="$dir/problems.jsonl" \
    run_dir="$dir/filter" --out="$dir/perfectible.jsonl" --samples=16 --low=0.2 --high=0.8
  echo "quickstart: $(wc -l < "$dir/perfectible.jsonl") of $(wc -l < "$dir/problems.jsonl") problems are perfectible"
}

reinforce() {
  local resume=()
  [[ -f $dir/rl/ledger.db ]] && resume=(--resume)
  "$lockstep" run deploy/quickstart/run.yaml seed="$seed" model.path="$dir/base" \
    data.train="$dir/perfectible.jsonl" run_dir="$dir/rl" "${resume[@]}"
}

phase data make_data
phase pretrain pretrain
phase filter filter
phase rl reinforce

checkpoint=$(find "$dir/rl/checkpoints" -maxdepth 1 -name 'step-*' | sort -V | tail -n 1)
echo
"$lockstep" summary "$dir/rl" --out="$dir/summary.json" \
  --phase=data:"$(<"$dir/data.seconds")" --phase=pretrain:"$(<"$dir/pretrain.seconds")" \
  --phase=filter:"$(<"$dir/filter.seconds")" --phase=rl:"$(<"$dir/rl.seconds")"
echo
echo "checkpoint (Hugging Face folder): $checkpoint"
echo "the same figures: $dir/summary.json"
echo "try it: $lockstep generate --model=$checkpoint --temperature=0.5 'Q: 384+597='"
