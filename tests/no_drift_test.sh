#!/usr/bin/env bash
# With learning rate 0 nothing may drift: the weights keep their bits, and no mismatch figure has a trend over the steps.
# STEPS sets their number; the long check is  bazel test //tests:no_drift_test --test_env=STEPS=200 --test_timeout=3600
source "$(dirname "$(realpath "$0")")/lib.sh"
steps=${STEPS:-12}
make_model

# trends RUN: the trend of each mismatch figure over the steps, as t = slope / its standard error.
trends() {
  jq -s -c '
    def trend: . as $y | length as $n | ([range($n)] | add / $n) as $mx | (add / $n) as $my
      | ([range($n) | (. - $mx) * (. - $mx)] | add) as $xx
      | ([range($n) | (. - $mx) * ($y[.] - $my)] | add / $xx) as $b
      | ([range($n) | ($y[.] - $my - $b * (. - $mx)) | . * .] | add / ($n - 2) / $xx | sqrt) as $e
      | if $e > 0 then $b / $e elif $b == 0 then 0 else 1e9 end;
    . as $all | ["kl_k1", "kl_k2", "kl_k3", "mean_abs_log_ratio", "max_abs_log_ratio", "ratio_outside_fraction",
      "perplexity_ratio", "sequence_log_ratio_mean", "effective_sample_size_token", "effective_sample_size_sequence",
      "chi_square_token", "chi_square_sequence"] | map({key: ., value: (. as $k | $all | map(.[$k]) | trend)}) | from_entries' \
    "$1/metrics.jsonl"
}

# A trend of pure chance: |t| above 5.5 with 10 degrees of freedom comes once in 4,000 times. Draws are seeded, so this
# test is the same each time.
for numerics in matched native; do
  for dtype in fp16 bf16; do
    run=$numerics-$dtype
    echo "== $run, $steps steps"
    "$lockstep" run run.yaml run_dir=$run numerics=$numerics learner.dtype=$dtype rollout.dtype=$dtype learner.lr=0 \
      rollout.num_servers=1 trainer.max_steps=$steps trainer.checkpoint_every=$((steps / 2)) > $run.log 2>&1 ||
      fail "$run: $(tail -n 3 $run.log)"
    steps_done $run $steps || fail "$run has $(wc -l < $run/metrics.jsonl) steps"
    cmp $run/checkpoints/step-$((steps / 2))/model.safetensors $run/checkpoints/step-$steps/model.safetensors ||
      fail "$run: the weights moved with learning rate 0"
    trends $run
    trends $run | jq -e 'all(.[]; fabs < 5.5)' > /dev/null || fail "$run: a figure drifts: $(trends $run)"
    if [[ $numerics == matched ]]; then
      jq -es 'all(.[]; .max_abs_log_ratio == 0)' $run/metrics.jsonl > /dev/null || fail "$run: matched has a mismatch"
    fi
  done
done
echo "passed"
