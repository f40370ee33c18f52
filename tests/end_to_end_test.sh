#!/usr/bin/env bash
# A run from a client's view: pretrain, run, the same seed again, control commands, generate, filter, summary.
source "$(dirname "$(realpath "$0")")/lib.sh"
make_model

echo "== a run ends by itself with checkpoint and figures"
"$lockstep" run run.yaml > run.log 2>&1 || fail "run: $(tail -n 3 run.log)"
steps_done run 4 || fail "metrics.jsonl has $(wc -l < run/metrics.jsonl) lines, not 4"
[[ -f run/checkpoints/step-4/model.safetensors && -f run/checkpoints/step-4/config.json ]] || fail "no checkpoint of step 4"
jq -es 'all(.[]; .max_abs_log_ratio == 0 and .kl_k1 == 0)' run/metrics.jsonl > /dev/null ||
  fail "matched numerics: $(jq -c '[.step, .max_abs_log_ratio]' run/metrics.jsonl | tr '\n' ' ')"

echo "== the same seed gives the same figures"
"$lockstep" run run.yaml run_dir=again > again.log 2>&1 || fail "second run: $(tail -n 3 again.log)"
[[ $(figures run) == "$(figures again)" ]] || fail "figures differ: $(diff <(figures run) <(figures again))"

echo "== another number of servers gives the same figures"
"$lockstep" run run.yaml run_dir=one rollout.num_servers=1 > one.log 2>&1 || fail "one server: $(tail -n 3 one.log)"
[[ $(figures run) == "$(figures one)" ]] || fail "figures differ: $(diff <(figures run) <(figures one))"

echo "== servers that run already are used by address, and stay"
"$bin/rollout_server/lockstep_rollout_server" --config=run/config.pbtxt --address_file=attached.address 2> attached.log &
server=$!
wait_for 30 test -s attached.address || fail "the server does not start: $(cat attached.log)"
"$lockstep" run run.yaml run_dir=attached rollout.addresses="$(< attached.address)" > attach.log 2>&1 ||
  fail "attached: $(tail -n 3 attach.log)"
[[ $(figures run) == "$(figures attached)" ]] || fail "figures differ: $(diff <(figures run) <(figures attached))"
kill -TERM $server || fail "the server ended with the run"
wait $server || fail "SIGTERM does not end the server with 0"

echo "== native numerics run and report their mismatch"
"$lockstep" run run.yaml run_dir=native numerics=native trainer.max_steps=2 > native.log 2>&1 || fail "native: $(tail -n 3 native.log)"
jq -es 'all(.[]; .max_abs_log_ratio < 0.5)' native/metrics.jsonl > /dev/null || fail "native mismatch is large"

echo "== adapters are trained, written for peft, and gone on from"
"$lockstep" run run.yaml run_dir=lora lora.rank=4 lora.alpha=16 lora.target_modules=q_proj,v_proj,down_proj \
  trainer.max_steps=2 > lora.log 2>&1 || fail "lora: $(tail -n 3 lora.log)"
jq -es 'all(.[]; .max_abs_log_ratio == 0)' lora/metrics.jsonl > /dev/null || fail "matched numerics with adapters"
adapter=lora/checkpoints/step-2/adapter
jq -e '.r == 4 and .lora_alpha == 16 and .target_modules == ["q_proj", "v_proj", "down_proj"]' \
  $adapter/adapter_config.json > /dev/null || fail "adapter_config.json: $(cat $adapter/adapter_config.json)"
"$lockstep" run run.yaml run_dir=lora2 model.adapter=$adapter lora.rank=4 lora.alpha=16 \
  lora.target_modules=q_proj,v_proj,down_proj trainer.max_steps=1 > lora2.log 2>&1 || fail "lora2: $(tail -n 3 lora2.log)"
expect_line "r is 4, lora.rank is 2" "$lockstep" run run.yaml run_dir=lora3 model.adapter=$adapter lora.rank=2
expect_line "'lm_head' is unknown" "$lockstep" run run.yaml run_dir=lora3 lora.rank=2 lora.target_modules=lm_head

echo "== control commands"
"$lockstep" run run.yaml run_dir=long trainer.max_steps=100000 trainer.checkpoint_every=0 --detach > detach.log 2>&1 ||
  fail "detach: $(cat detach.log)"
wait_for 60 steps_done long 1 || fail "the detached run makes no steps"
"$lockstep" status long | grep -q 'step' || fail "status"
"$lockstep" pause long || fail "pause"
paused() { "$lockstep" status long | grep -q paused; }
wait_for 30 paused || fail "the run does not pause: $("$lockstep" status long)"
"$lockstep" checkpoint long | grep -q 'checkpoints/step-' || fail "checkpoint prints no path"
"$lockstep" resume long || fail "resume"
before=$(wc -l < long/metrics.jsonl)
wait_for 30 steps_done long $((before + 1)) || fail "the run does not go on after resume"
"$lockstep" stop long || fail "stop"
ended() { ! "$lockstep" status long; }
wait_for 60 ended || fail "the run does not end after stop"
gone() { ! pgrep -f "$work/.*long|--config=long/"; }
wait_for 30 gone || fail "processes are left after stop: $(pgrep -af 'config=long/')"

echo "== filter keeps problems between the thresholds"
"$lockstep" filter run.yaml run_dir=filter --out=kept.jsonl --samples=4 --low=0 --high=1 > filter.log 2>&1 ||
  fail "filter: $(tail -n 3 filter.log)"
(($(wc -l < kept.jsonl) == 400)) || fail "thresholds 0 and 1 keep all 400 problems, not $(wc -l < kept.jsonl)"
jq -es 'all(.[]; .pass_rate >= 0 and .pass_rate <= 1)' kept.jsonl > /dev/null || fail "kept problems carry no pass_rate"

echo "== generate and summary"
a=$("$lockstep" generate --model=run/checkpoints/step-4 --greedy --max_tokens=30 'Q: 1+2=') || fail "generate"
b=$("$lockstep" generate --model=run/checkpoints/step-4 --greedy --max_tokens=30 'Q: 1+2=') || fail "generate"
[[ -n $a && $a == "$b" ]] || fail "greedy generation printed '$a' and '$b'"
"$lockstep" summary run --out=summary.json | grep -q 'reward at end' || fail "summary"
jq -e '.steps == 4 and .max_abs_log_ratio == 0 and has("tokens_per_second")' summary.json > /dev/null || fail "summary.json"
echo "passed"
