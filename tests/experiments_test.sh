#!/usr/bin/env bash
# experiments/run, in its --quick form: a figure is run, killed and stopped in the middle, and run again; a failing run does
# not stop the others.
source "$(dirname "$(realpath "$0")")/lib.sh"
export LOCKSTEP_BUILD_DIR=$bin
run=$bin/experiments/run
folder=$work/quick
figure() { "$run" "$@" --quick --seeds=1 --skip-build --dir="$folder"; }

echo "== what is asked wrongly is one line"
expect_line "'precisoin' is not a figure" figure precisoin
expect_line "--jobs=0 is not a whole number above 0" figure precision --jobs=0
expect_line "--seeds=a is not a list" "$run" precision --seeds=a

echo "== killed in the middle: its runs live on, and the same command takes them over"
steps=40  # enough of them that a run is in progress when the signals come
export QUICK_STEPS=$steps
"$run" precision --quick --seeds=1 --skip-build --dir="$folder" > first.log 2>&1 &
pid=$!
disown "$pid"
first=$folder/runs/bf16-bf16-grpo_token_tis-seed1
wait_for 90 steps_done "$first" 2 || fail "no steps: $(cat first.log)"
kill -KILL "$pid"
wait_for 10 pgrep -f "run $folder/configs" || fail "the runs ended with their starter"
"$run" precision --jobs=1 --quick --seeds=1 --skip-build --dir="$folder" > second.log 2>&1 &
pid=$!
wait_for 90 grep -qE "^run 1 of 4 .* (done|is finished already)" second.log ||
  fail "the first run did not end: $(cat second.log)"

echo "== stopped in the middle: a checkpoint, exit code 130"
kill -TERM "$pid"
wait "$pid"
code=$?
((code == 130)) || fail "exit code $code after SIGTERM: $(cat second.log)"
grep -q "goes on" second.log || fail "no word of how to go on: $(cat second.log)"
pgrep -f "run $folder/configs" > /dev/null && fail "a run lives on after SIGTERM"

echo "== run again: complete, with results of every run"
figure precision > third.log 2>&1 || fail "third call: $(cat third.log)"
jq -e --argjson steps $steps '.figure == "precision" and (.runs | length) == 4 and
  all(.runs[]; .finished and .steps == $steps and (.reward | length) == $steps
  and .kl_k3 >= 0 and .response_tokens > 0 and .skipped_steps == 0 and .seconds.total > 0)' "$folder/results/precision.json" > /dev/null ||
  fail "results: $(cat "$folder/results/precision.json")"
jq -e '[.runs[].variant] | sort == ["bf16-bf16-grpo_token_tis", "bf16-fp16-grpo_token_tis", "bf16-fp32-grpo_token_tis",
  "fp16-fp16-grpo_token_tis"]' "$folder/results/precision.json" > /dev/null || fail "variants"
[[ $(jq -s -c 'map(.step | tonumber) | unique | length' "$first/metrics.jsonl") == "$steps" ]] || fail "steps are missing in $first"
grep -q "dtype: bf16" "$folder/configs/bf16-fp32-grpo_token_tis-seed1.yaml" || fail "the run file has no learner dtype"
"$lockstep" doctor "$folder/configs/bf16-fp32-grpo_token_tis-seed1.yaml" > doctor.log 2>&1 || true
grep -q "unknown" doctor.log && fail "the run file is refused: $(cat doctor.log)"

echo "== finished runs are skipped"
figure precision > fourth.log 2>&1 || fail "fourth call: $(cat fourth.log)"
(($(grep -c "is finished already" fourth.log) == 4)) || fail "a finished run was run again: $(cat fourth.log)"

echo "== a failing run is named, and the others are run"
export QUICK_STEPS=3
mkdir -p "$folder/runs"
: > "$folder/runs/old-rollout-updates1-seed1"  # a file where its folder should be
figure recompute > failing.log 2>&1
code=$?
((code == 1)) || fail "exit code $code with a failing run: $(cat failing.log)"
grep -q "1 run(s) failed: old-rollout-updates1-seed1" failing.log || fail "the failing run is not named: $(cat failing.log)"
jq -e '[.runs[] | select(.finished)] | length == 3' "$folder/results/recompute.json" > /dev/null ||
  fail "results: $(cat "$folder/results/recompute.json")"
echo "passed"
