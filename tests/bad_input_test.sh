#!/usr/bin/env bash
# Wrong files, wrong commands, wrong models: one line each that says what, where and what to do; never a crash.
source "$(dirname "$(realpath "$0")")/lib.sh"
make_model

expect_line "'fly' is not a command" "$lockstep" fly
expect_line "usage: lockstep run CONFIG" "$lockstep" run
expect_line "cannot be read" "$lockstep" run missing.yaml
expect_line "--resum is not a flag" "$lockstep" run run.yaml --resum
expect_line "did you mean rollout.temperature?" "$lockstep" run run.yaml rollout.temprature=1
expect_line "rollout.n: 'x' is not a whole number" "$lockstep" run run.yaml rollout.n=x
expect_line "model.path: nowhere does not exist" "$lockstep" run run.yaml model.path=nowhere
expect_line "data: nothing.jsonl does not exist" "$lockstep" run run.yaml data.train=nothing.jsonl
expect_line "neither a run folder nor host:port" "$lockstep" status nowhere
expect_line "no run was started in this folder" "$lockstep" status base
expect_line "does not answer" "$lockstep" status 127.0.0.1:1
expect_line "holds no run to resume" "$lockstep" run run.yaml run_dir=fresh --resume
expect_line "needs --model=DIR" "$lockstep" generate hello

echo "== damaged models are refused by name, by the server that loads them"
damage() {
  rm -rf bad
  cp -r base bad
}
damage; truncate -s 100 bad/model.safetensors
expect_line "model.safetensors" "$lockstep" generate --model=bad hello
damage; printf '\xff\xff\xff\xff\xff\xff\xff\x7f' | dd of=bad/model.safetensors conv=notrunc status=none
expect_line "model.safetensors" "$lockstep" generate --model=bad hello
damage; echo '{' > bad/config.json
expect_line "config.json" "$lockstep" generate --model=bad hello
damage; sed -i 's/Qwen2ForCausalLM/GPT9/' bad/config.json
expect_line "GPT9" "$lockstep" generate --model=bad hello
damage; echo '{"model": {"type": "BPE"}}' > bad/tokenizer.json
expect_line "tokenizer.json" "$lockstep" generate --model=bad hello

echo "== a prompt that is too long is refused"
expect_line "" "$lockstep" generate --model=base "$(printf 'Q: 1+2=%.0s' {1..200})"

echo "== a data line that is no JSON is named with its number"
printf '{"prompt": "Q: 1+1=", "answer": "2"}\nnonsense\n' > broken.jsonl
expect_line "broken.jsonl:2" "$lockstep" run run.yaml data.train=broken.jsonl run_dir=broken

echo "== a port in use is named"
"$bin/rollout_server/lockstep_rollout_server" --config=broken/config.pbtxt --address_file=first.address 2> first.log &
wait_for 30 test -s first.address || fail "the server does not start: $(cat first.log)"
port=$(sed 's/.*://' first.address)
expect_line "error: cannot listen on 127.0.0.1:$port" \
  "$bin/rollout_server/lockstep_rollout_server" --config=broken/config.pbtxt --port="$port"
kill -TERM %1
wait %1 || fail "SIGTERM does not end the server with 0"

echo "== a full disk costs the checkpoint and not the steps; with room again the run is resumed to the same figures"
mkdir small
if mount -t tmpfs -o size=96k tmpfs small 2> /dev/null; then
  trap 'code=$?; umount small 2>/dev/null; pkill -KILL -f "$work" 2>/dev/null; rm -rf "$work"; exit $code' EXIT
  mkdir -p full
  ln -s "$work/small" full/checkpoints
  expect_line "free some or set run_dir elsewhere" "$lockstep" run run.yaml run_dir=full
  umount small
  steps_done full 4 || fail "the run did not go on after the disk was full"
  figures full > before.figures
  grep -q 'checkpoint of step 2 was not written, training goes on' full/logs/learner.log ||
    fail "the learner does not say that it goes on without the checkpoint"
  "$lockstep" run run.yaml run_dir=full --resume > full.log 2>&1 || fail "resume: $(tail -n 3 full.log)"
  [[ -f full/checkpoints/step-4/model.safetensors ]] || fail "the resumed run wrote no checkpoint"
  [[ $(figures full) == "$(< before.figures)" ]] || fail "figures differ: $(diff before.figures <(figures full))"
else
  echo "not root: the full disk is left out"
fi
echo "passed"
