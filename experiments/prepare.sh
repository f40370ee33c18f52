# Base models and problems, once for all figures. Sourced by experiments/run, which has set bin, lockstep, dir and here.

# What a base model is trained on and asked: flags of make_arithmetic for both; phases of pretraining as
# LEARNING_RATE:STEPS, the last of which ends while the model still makes mistakes.
base_of() { # MODEL: sets config, sft_task, problem_task, phases, filter_keys
  config=$here/models/$1/config.json filter_keys=()
  case $1 in
    dense)
      sft_task="--min_digits=4 --max_digits=12" problem_task="--min_digits=7 --max_digits=12"
      phases=(3e-3:1300 1e-3:900 3e-3:600 1e-3:400)
      ;;
    sequence) # responses of 284 to 464 tokens
      sft_task="--task=recurrence --min_terms=28 --max_terms=46" problem_task=$sft_task
      config=$here/models/dense/config.json phases=(3e-3:600 1e-3:300)
      filter_keys=("$long_responses")
      ;;
    llama) sft_task="--min_digits=2 --max_digits=4" problem_task="--min_digits=3 --max_digits=4" phases=(3e-3:900) ;;
    moe)
      sft_task="--min_digits=2 --max_digits=4" problem_task="--min_digits=3 --max_digits=4" phases=(3e-3:900)
      config=$here/moe/model_4/config.json
      ;;
    *) echo "experiments: model '$1' is not in experiments/prepare.sh" >&2; return 1 ;;
  esac
  if ((quick)); then phases=(3e-3:4 1e-3:2); fi
}

make_problems() { # FOLDER
  local make=$bin/learner/tasks/make_arithmetic sft problem
  read -ra sft <<< "$sft_task"
  read -ra problem <<< "$problem_task"
  "$make" --count="$sft_count" --seed=1 "${sft[@]}" --out_sft="$1/sft.jsonl" --tokenizer_dir="$1/start" &&
    "$make" --count="$problem_count" --seed=1000001 "${problem[@]}" --out_rl="$1/problems.jsonl"
}

# All phases, each from the last one's checkpoint; finished ones are kept. Sets `trained` to the last checkpoint.
pretrain() { # MODEL FOLDER
  local model=$1 folder=$2 number=0 phase steps run
  trained=$folder/start
  for phase in "${phases[@]}"; do
    number=$((number + 1)) steps=${phase#*:} run=$folder/pretrain$number
    if [[ ! -f $run/checkpoints/step-$steps/config.json ]]; then
      rm -rf "$run"
      echo "experiments: pretraining $model, phase $number of ${#phases[@]}, $steps steps (progress: $run.log)"
      run_job "pretraining of $model" "$run.log" "$lockstep" pretrain "$here/pretrain.yaml" model.path="$trained" \
        data.train="$folder/sft.jsonl" run_dir="$run" seed="$number" learner.lr="${phase%:*}" \
        trainer.max_steps="$steps" || return
    fi
    trained=$run/checkpoints/step-$steps
  done
}

# Base model $dir/models/MODEL/base and its perfectible problems, perfectible.jsonl beside it.
prepare_model() {
  local model=$1 folder=$dir/models/$1 config sft_task problem_task phases filter_keys trained
  [[ -f $folder/perfectible.jsonl ]] && return
  base_of "$model" || return
  mkdir -p "$folder/start"
  cp "$config" "$folder/start/config.json" && make_problems "$folder" && pretrain "$model" "$folder" || return
  rm -rf "$folder/base" "$folder/filter"
  cp -r "$trained" "$folder/base"
  # The filter samples in FP32, matched: neither precision chose the problems.
  run_job "filter of $model" "$folder/filter.log" "$lockstep" filter "$here/run.yaml" model.path="$folder/base" \
    data.train="$folder/problems.jsonl" run_dir="$folder/filter" numerics=matched rollout.dtype=fp32 learner.dtype=fp32 "${filter_keys[@]}" \
    --out="$folder/filtered.jsonl" --samples=16 --low="$filter_low" --high="$filter_high" || return
  local kept
  kept=$(wc -l < "$folder/filtered.jsonl")
  echo "experiments: $kept of $(wc -l < "$folder/problems.jsonl") problems are perfectible for $model"
  ((kept >= 16)) || { echo "experiments: fewer than 16 problems for $model: its base model is too good or too weak" >&2; return 1; }
  mv "$folder/filtered.jsonl" "$folder/perfectible.jsonl"
}
