# What each figure consists of. Sourced by experiments/run.
#
# plan FIGURE prints one line a run, without its seed:   NAME MODEL key=value ...
# MODEL is a base model of prepare_model (experiments/prepare.sh). Figures share the runs of equal names.
figures=(algorithms precision stress long sequence updates search lora llama moe matched recompute)

precision_algorithm=grpo_token_tis
stress_lr=3e-4  # three times the others'
lora_lr=4e-3    # 40 times, as in the paper's scripts (4e-5 against 1e-6)
recompute_steps=12
long_responses="rollout.max_tokens=490"
# NAME:what differs from `sequence`. Samples of up to four steps ago with mu as the old policy; errors of logits doubled
# (a temperature of 0.5) and an entropy that is higher from the start (1.3); four times the updates from one batch; twice
# the learning rate; the last three together. (Without a bound on the gradient norm the runs are those of `sequence`: the
# bound is 1, and the norm stays below 0.3.)
search=(
  "stale:algorithm.max_staleness=4 algorithm.old_log_prob=rollout"
  "sharp:rollout.temperature=0.5"
  "hot:rollout.temperature=1.3"
  "updates16:trainer.updates_per_step=16"
  "lr2:learner.lr=2e-4"
  "harsh:rollout.temperature=1.3 trainer.updates_per_step=16 learner.lr=2e-4"
)

algorithms=(grpo grpo_token_tis grpo_seq_mis gspo pg_seq_is)

# algorithm NAME: the paper's scripts run the GRPO family with Dr.GRPO's advantage and constant, GSPO with its own.
algorithm() {
  printf 'algorithm.name=%s' "$1"
  [[ $1 == gspo ]] || printf ' algorithm.advantage=mean algorithm.aggregation=constant'
}

# dtypes LEARNER ROLLOUT
dtypes() { printf 'learner.dtype=%s rollout.dtype=%s' "$1" "$2"; }

plan() {
  local name dtype pair old updates
  case $1 in
    algorithms) # claims 3 and 4
      for dtype in bf16 fp16; do
        for name in "${algorithms[@]}"; do
          echo "$dtype-$dtype-$name dense $(dtypes $dtype $dtype) $(algorithm "$name")"
        done
      done
      ;;
    precision) # claim 5: learner-rollout
      for pair in "bf16 bf16" "bf16 fp16" "bf16 fp32" "fp16 fp16"; do
        # shellcheck disable=SC2086
        echo "${pair/ /-}-$precision_algorithm dense $(dtypes $pair) $(algorithm "$precision_algorithm")"
      done
      ;;
    stress) # a learning rate at which runs of both precisions fail now and then; fp32 as the one without 16-bit rounding
      for pair in "bf16 bf16" "bf16 fp32" "fp16 fp16" "fp32 fp32"; do
        # shellcheck disable=SC2086
        echo "stress-${pair/ /-} dense $(dtypes $pair) $(algorithm grpo) learner.lr=$stress_lr"
      done
      ;;
    long) # claim 3 over 2.5 times the steps
      for pair in "bf16 bf16" "bf16 fp32" "fp16 fp16"; do
        # shellcheck disable=SC2086
        echo "long-${pair/ /-} dense $(dtypes $pair) $(algorithm grpo) trainer.max_steps=100"
      done
      ;;
    sequence) # claims 2 and 3 where responses have hundreds of tokens; fp32 as the one without 16-bit rounding
      for pair in "bf16 bf16" "bf16 fp32" "fp16 fp16" "fp32 fp32"; do
        # shellcheck disable=SC2086
        echo "sequence-${pair/ /-} sequence $(dtypes $pair) $(algorithm grpo) $long_responses"
      done
      ;;
    updates) # 16 updates from one batch, where the search found the precisions to differ; shares its runs
      for pair in "bf16 bf16" "bf16 fp32" "fp16 fp16" "fp32 fp32"; do
        # shellcheck disable=SC2086
        echo "search-updates16-${pair/ /-} sequence $(dtypes $pair) $(algorithm grpo) $long_responses trainer.updates_per_step=16"
      done
      ;;
    search) # for a regime in which BF16's mismatch does harm; a regime that hurts fp32 as well is not one
      for pair in "bf16 fp32" "fp16 fp16" "fp32 fp32"; do
        for name in "${search[@]}"; do
          # shellcheck disable=SC2086
          echo "search-${name%%:*}-${pair/ /-} sequence $(dtypes $pair) $(algorithm grpo) $long_responses ${name#*:}"
        done
      done
      ;;
    lora) # claim 6: the paper's rank 1 and alpha 2
      for dtype in bf16 fp16; do
        echo "lora-$dtype dense $(dtypes $dtype $dtype) $(algorithm grpo_token_tis) lora.rank=1 lora.alpha=2 learner.lr=$lora_lr"
      done
      ;;
    llama) # claim 6
      for dtype in bf16 fp16; do echo "llama-$dtype llama $(dtypes $dtype $dtype) $(algorithm grpo)"; done
      ;;
    moe) # claim 6; experiments/moe has router replay
      for dtype in bf16 fp16; do echo "moe-$dtype moe $(dtypes $dtype $dtype) $(algorithm grpo_seq_mis)"; done
      ;;
    recompute) # claim 7
      for updates in 1 4; do
        for old in recompute rollout; do
          echo "old-$old-updates$updates dense $(dtypes fp16 fp16) $(algorithm grpo) algorithm.old_log_prob=$old" \
            "trainer.updates_per_step=$updates trainer.max_steps=$recompute_steps"
        done
      done
      ;;
    matched) # the project's own claim
      for dtype in bf16 fp16; do
        echo "matched-$dtype dense $(dtypes $dtype $dtype) $(algorithm grpo) numerics=matched"
      done
      ;;
    *)
      echo "experiments: '$1' is not a figure; the figures are mismatch, mismatch_sequence, ${figures[*]} and all" >&2
      return 2
      ;;
  esac
}
