#!/usr/bin/env bash
# The memory plan against processes: a run of a random model of a shape (default: quickstart), whose peak of anonymous
# memory (RssAnon: without the mapped model file) is sampled from /proc.
#   bazel test //tests:memory_test                  the quickstart's shape
#   bazel test //tests:memory_05b_test              Qwen2.5-0.5B's, by hand: 12 GiB and some minutes
# Bounds: a process takes no more than planned, and at least LEAST percent (second argument) of it: 40 for the small one,
# where the constants of a process and of scratch count and a peak of milliseconds falls between two looks, 90 for the
# large one.
source "$(dirname "$(realpath "$0")")/lib.sh"
shape=${1:-quickstart}
least=${2:-40}
steps=${3:-2}
make_model
"$lockstep" make-model --shape="$shape" --tokenizer=base shaped > make.log || fail "make-model: $(cat make.log)"
cat make.log
settings=(model.path=shaped run_dir=measured trainer.max_steps="$steps" trainer.prompts_per_step=4
  trainer.checkpoint_every=0 rollout.n=4 rollout.max_tokens=32 rollout.num_servers=1 rollout.max_batch_size=16
  rollout.threads=2 rollout.group_timeout_seconds=3000 learner.activation_recompute=true
  learner.micro_batch_tokens=512 learner.threads=2 weight_sync.timeout_seconds=300)

# Peak of RssAnon in KiB of each process of the run, into PEAKS/NAME.
mkdir peaks
watch_peaks() {
  while true; do
    for name in learner rollout_server; do
      for pid in $(pgrep -f "lockstep_$name .*--config=measured/config.pbtxt"); do
        rss=$(awk '/^RssAnon:/ {print $2}' "/proc/$pid/status" 2> /dev/null)
        [[ -n $rss ]] || continue
        ((rss > $(cat "peaks/$name" 2> /dev/null || echo 0))) && echo "$rss" > "peaks/$name"
        hwm=$(awk '/^VmHWM:/ {print $2}' "/proc/$pid/status" 2> /dev/null)
        [[ -n $hwm ]] && echo "$hwm" > "peaks/$name.hwm"
      done
    done
    read -rt 0.05 <> <(:) || true
  done
}
watch_peaks &
watcher=$!
"$lockstep" run run.yaml "${settings[@]}" > run.log 2>&1 || fail "run: $(tail -n 3 run.log)"
kill $watcher
steps_done measured "$steps" || fail "the run made no $steps steps"
grep '^memory: ' run.log
jq -c '[.step, .response_tokens, .seconds]' measured/metrics.jsonl

failed=0
for name in learner rollout_server; do
  planned=$(sed -n 2p measured/logs/memory_plan.log | jq ".processes[] | select(.name == \"${name/_/ }\") | .bytes")
  peak=$(($(cat "peaks/$name") * 1024))
  echo "$name: planned $planned bytes, peak $peak ($((100 * peak / planned))%), VmHWM with mapped files $(($(cat "peaks/$name.hwm") * 1024))"
  sed -n 2p measured/logs/memory_plan.log | jq -c ".processes[] | select(.name == \"${name/_/ }\") | .pools"
  ((peak <= planned)) || { echo "$name took more than planned"; failed=1; }
  ((100 * peak >= least * planned)) || { echo "$name took less than $least% of what was planned"; failed=1; }
done
((failed == 0)) || fail "the plan is off"
echo "passed"
