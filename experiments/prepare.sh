# Base models and problems, once for all figures. Sourced by experiments/run, which has set bin, lockstep, dir and here.

make_problems() {
  [[ -f $dir/problems.jsonl && -f $dir/sft.jsonl ]] && return
  local make=$bin/learner/tasks/make_arithmetic
  "$make" --count="$sft_count" --seed=1 --min_digits=4 --max_digits=12 --out_sft="$dir/sft.jsonl" &&
    "$make" --count="$problem_count" --seed=1000001 --min_digits=7 --max_digits=12 --out_rl="$dir/problems.jsonl"
}

# pretrain MODEL FROM FOLDER STEPS key=value ...
pretrain() {
  local model=$1 from=$2 folder=$3 steps=$4
  shift 4
  [[ -f $folder/checkpoints/step-$steps/config.json ]] && return
  rm -rf "$folder"
  echo "experiments: pretraining $model, $steps steps (progress: $folder.log)"
  run_job "pretraining of $model" "$folder.log" "$lockstep" pretrain "$here/pretrain.yaml" model.path="$from" \
    data.train="$dir/sft.jsonl" run_dir="$folder" trainer.max_steps="$steps" "$@"
}

# Base model $dir/models/MODEL/base and its perfectible problems, perfectible.jsonl beside it.
prepare_model() {
  local model=$1 folder=$dir/models/$1 config=$here/models/$1/config.json
  [[ -f $folder/perfectible.jsonl ]] && return
  [[ -f $config ]] || { echo "experiments: $config is not there" >&2; return 1; }
  mkdir -p "$folder/start"
  make_problems || return
  cp "$config" "$folder/start/config.json"
  "$bin/learner/tasks/make_arithmetic" --count=0 --tokenizer_dir="$folder/start" || return
  pretrain "$model" "$folder/start" "$folder/pretrain1" "$pretrain1_steps" || return
  pretrain "$model" "$folder/pretrain1/checkpoints/step-$pretrain1_steps" "$folder/pretrain2" "$pretrain2_steps" seed=2 \
    learner.lr=1e-3 learner.warmup_steps=0 || return
  rm -rf "$folder/base" "$folder/filter"
  cp -r "$folder/pretrain2/checkpoints/step-$pretrain2_steps" "$folder/base"
  # The filter samples in FP32, matched: neither precision chose the problems.
  run_job "filter of $model" "$folder/filter.log" "$lockstep" filter "$here/run.yaml" model.path="$folder/base" \
    data.train="$dir/problems.jsonl" run_dir="$folder/filter" numerics=matched rollout.dtype=fp32 learner.dtype=fp32 \
    --out="$folder/filtered.jsonl" --samples=16 --low="$filter_low" --high="$filter_high" || return
  local kept
  kept=$(wc -l < "$folder/filtered.jsonl")
  echo "experiments: $kept of $(wc -l < "$dir/problems.jsonl") problems are perfectible for $model"
  ((kept >= 16)) || { echo "experiments: fewer than 16 problems for $model: its base model is too good or too weak" >&2; return 1; }
  mv "$folder/filtered.jsonl" "$folder/perfectible.jsonl"
}
