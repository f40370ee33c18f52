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

echo "== a GPU that is not there is one line, whether the build has CUDA or not"
expect_line "device: 'gpu' is unknown; use one of cpu, cuda" "$lockstep" run run.yaml device=gpu
if [[ ! -e /dev/nvidiactl ]]; then
  expect_line "CUDA" "$lockstep" run run.yaml device=cuda run_dir=no_gpu
  expect_line "CUDA" "$bin/rollout_server/lockstep_rollout_server" --config=no_gpu/config.pbtxt
fi

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

damage; jq '.added_tokens += [{"id": 3000, "content": "<x>", "special": true}]' base/tokenizer.json > bad/tokenizer.json
expect_line "the tokenizer has ids up to 3000" "$lockstep" generate --model bad hello
expect_line "the tokenizer has ids up to 3000" "$lockstep" run run.yaml model.path=bad run_dir=large_tokenizer

echo "== tokenize and chat templates say what they cannot do"
expect_line "usage: lockstep tokenize" "$lockstep" tokenize
expect_line "cannot open nowhere/tokenizer.json" "$lockstep" tokenize --model nowhere
expect_line "stdin line 1: base/tokenizer.json: the vocabulary has no token" bash -c "echo '1+1=\$' | $lockstep tokenize --model base"
expect_line "has no chat template" "$lockstep" tokenize --model=base --chat
expect_line "has no chat template" "$lockstep" run run.yaml data.prompt_template=chat run_dir=chatless
damage; echo "{% include 'x' %}" > bad/chat_template.jinja
expect_line 'line 1: statement "include" is not supported' "$lockstep" tokenize --model=bad --chat
damage; echo '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}' > bad/chat_template.jinja
expect_line 'its limit' bash -c "echo 1 | $lockstep tokenize --model=bad --chat"

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
