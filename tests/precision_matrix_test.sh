#!/usr/bin/env bash
# The paper's precision table, learner dtype by rollout dtype: all nine cells run. Under matched numerics mu equals pi to
# the bit exactly where the two dtypes are equal, and nowhere else; the loss scale is on for fp16 learners alone.
source "$(dirname "$(realpath "$0")")/lib.sh"
make_model

# expect_steps RUN FILTER WHAT: the jq filter holds for each step of the run.
expect_steps() {
  jq -es "length == 2 and all(.[]; $2)" "$1/metrics.jsonl" > /dev/null || fail "$1: $3: $(cat "$1/metrics.jsonl")"
}

for learner in fp16 bf16 fp32; do
  for rollout in fp16 bf16 fp32; do
    run=$learner-$rollout
    echo "== learner $learner, rollout $rollout"
    "$lockstep" run run.yaml run_dir=$run learner.dtype=$learner rollout.dtype=$rollout rollout.num_servers=1 \
      trainer.prompts_per_step=16 rollout.n=8 trainer.max_steps=2 trainer.checkpoint_every=0 > $run.log 2>&1 ||
      fail "$run: $(tail -n 3 $run.log)"
    # A number that is not finite is null in the file.
    expect_steps $run 'all(.. | select(type != "object" and type != "array"); . != null)' "a figure is not finite"
    expect_steps $run '.response_tokens > 0 and .skipped == false' "a step was skipped"
    jq -es 'any(.[]; .grad_norm > 0)' $run/metrics.jsonl > /dev/null || fail "$run has no gradient at all"
    if [[ $learner == fp16 ]]; then
      expect_steps $run '.loss_scale == 65536' "fp16 trains with a loss scale"
    else
      expect_steps $run '.loss_scale == 1' "$learner trains without a loss scale"
    fi
    if [[ $learner == "$rollout" ]]; then
      expect_steps $run '.max_abs_log_ratio == 0 and .kl_k3 == 0 and .ratio_outside_fraction == 0 and
        .sequence_log_ratio_min == 0 and .sequence_log_ratio_max == 0 and .effective_sample_size_sequence == 1 and
        .chi_square_sequence == 0' "equal dtypes are equal bits"
    else
      expect_steps $run '.max_abs_log_ratio > 0 and .kl_k3 > 0 and .probability_correlation < 1 and
        .sequence_log_ratio_min < .sequence_log_ratio_max' "different dtypes differ"
    fi
  done
done

# The mantissas: 10 bits in fp16, 7 in bf16, 23 in fp32.
mean() { jq -s 'map(.mean_abs_log_ratio) | add / length' "$1/metrics.jsonl"; }
jq -en "$(mean bf16-fp32) > 2 * $(mean fp16-fp32)" > /dev/null ||
  fail "bf16 is $(mean bf16-fp32) from fp32, fp16 is $(mean fp16-fp32)"
echo "passed"
