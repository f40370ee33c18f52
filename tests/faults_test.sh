#!/usr/bin/env bash
# Processes are killed in mid-run; the figures must be those of the run without the fault (FAULTS.md I1, I9, I12).
source "$(dirname "$(realpath "$0")")/lib.sh"
make_model
steps=8
sed -i "s/max_steps: 4/max_steps: $steps/" run.yaml
"$lockstep" run run.yaml run_dir=clean > clean.log 2>&1 || fail "clean run: $(tail -n 3 clean.log)"

audit() {
  local groups
  groups=$(sqlite3 "$1/ledger.db" "select count(*) from groups") || fail "the ledger of $1 cannot be read"
  ((groups == steps * 8)) || fail "$1: the ledger holds $groups groups, not $((steps * 8)): a sample was lost or counted twice"
}
audit clean

echo "== a rollout server killed in mid-stream changes no figure"
"$lockstep" run run.yaml run_dir=killed > killed.log 2>&1 &
client=$!
wait_for 60 steps_done killed 2 || fail "no second step"
pkill -KILL -f 'lockstep_rollout_server --config=killed/config.pbtxt --address_file=killed/rollout-0' || fail "no server to kill"
wait $client || fail "the run did not survive: $(tail -n 3 killed.log)"
grep -q 'killed by signal 9' killed.log || fail "the client does not name the killed server: $(cat killed.log)"
[[ $(figures clean) == "$(figures killed)" ]] || fail "figures differ: $(diff <(figures clean) <(figures killed))"
audit killed

echo "== a learner killed and resumed gives the next step of the uninterrupted run"
"$lockstep" run run.yaml run_dir=resumed > resumed.log 2>&1 &
client=$!
wait_for 60 steps_done resumed 3 || fail "no third step"
pkill -KILL -f 'lockstep_learner --config=resumed/' || fail "no learner to kill"
wait $client && fail "the client reports success though its learner was killed"
expect_line "holds a run already" "$lockstep" run run.yaml run_dir=resumed
"$lockstep" run run.yaml run_dir=resumed --resume >> resumed.log 2>&1 || fail "resume: $(tail -n 3 resumed.log)"
[[ $(figures clean) == "$(figures resumed)" ]] || fail "figures differ: $(diff <(figures clean) <(figures resumed))"
audit resumed
cmp clean/checkpoints/step-$steps/model.safetensors resumed/checkpoints/step-$steps/model.safetensors ||
  fail "the weights after resume differ"

echo "== a client that is killed leaves no process behind"
"$lockstep" run run.yaml run_dir=orphan trainer.max_steps=100000 > orphan.log 2>&1 &
client=$!
wait_for 60 steps_done orphan 1 || fail "no step"
kill -KILL $client
none_left() { ! pgrep -f 'config=orphan/'; }
wait_for 60 none_left || fail "left behind: $(pgrep -af 'config=orphan/')"
echo "passed"
