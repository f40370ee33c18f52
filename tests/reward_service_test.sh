#!/usr/bin/env bash
# A run whose rewards come from examples/reward_service.py: the same rewards as the verifier's, an outage that is waited
# for, one that is not, and an address where nothing listens. Then `lockstep grade` on a file.
source "$(dirname "$(realpath "$0")")/lib.sh"
make_model

python=
for candidate in /usr/bin/python3 python3; do
  "$candidate" -c 'import grpc, google.protobuf' 2> /dev/null && { python=$candidate; break; }
done
[[ -n $python ]] || fail "no python3 has grpc; deploy/install_deps.sh installs python3-grpcio"
start_service() {
  rm -f service.address
  "$python" "$bin/examples/reward_service.py" --proto="$bin/proto/reward.proto" --port="$1" \
    --address_file="$work/service.address" > "service-$1.log" 2>&1 &
  service=$!
  wait_for 30 test -s service.address || fail "the service does not start: $(cat "service-$1.log")"
}
end_service() {
  kill -KILL "$service"
  wait "$service" 2> /dev/null
}

echo "== the service's rewards train the run"
start_service 0
address=$(cat service.address)
port=${address##*:}
"$lockstep" run run.yaml run_dir=served data.reward=service data.reward_address="$address" > served.log 2>&1 ||
  fail "served: $(tail -n 3 served.log)"
"$lockstep" run run.yaml run_dir=builtin > builtin.log 2>&1 || fail "builtin: $(tail -n 3 builtin.log)"
[[ $(figures served) == "$(figures builtin)" ]] || fail "figures differ: $(diff <(figures served) <(figures builtin))"
jq -es 'all(.[]; .dropped_samples == 0)' served/metrics.jsonl > /dev/null || fail "samples were dropped"

echo "== a service that is away for a while is waited for"
run_long() {
  "$lockstep" run run.yaml run_dir="$1" data.reward=service data.reward_address="$address" trainer.max_steps=100000 \
    trainer.checkpoint_every=0 data.reward_timeout_seconds="$2" --detach > "$1.log" 2>&1 || fail "$1: $(cat "$1.log")"
  wait_for 60 steps_done "$1" 1 || fail "the run $1 makes no steps"
}
run_long away 120
end_service
says() { "$lockstep" status "$1" | grep -q "$2"; }
wait_for 30 says away 'is away since .* wait' || fail "status does not name the outage: $("$lockstep" status away)"
start_service "$port"
before=$(wc -l < away/metrics.jsonl)
wait_for 60 steps_done away $((before + 2)) || fail "the run does not go on when the service is back"
jq -es 'all(.[]; .dropped_samples == 0)' away/metrics.jsonl > /dev/null || fail "an outage within the timeout cost samples"
"$lockstep" stop away || fail "stop"

echo "== one that stays away costs samples, with a reason, and does not hang the run"
run_long gone 1
end_service
# A response that was cut at its 40 tokens is wrong without asking the service; every other one is lost.
dropped() { jq -es 'any(.[]; .dropped_samples > 0 and (.samples == 0 or .response_length_mean == 40))' gone/metrics.jsonl; }
wait_for 60 dropped || fail "no step lost its samples: $(tail -n 2 gone/metrics.jsonl)"
grep -q 'has no reward and is dropped: the reward service' gone/logs/learner.log || fail "the log gives no reason"
"$lockstep" stop gone || fail "stop while the service is away"
ended() { ! "$lockstep" status gone; }
wait_for 60 ended || fail "the run does not end after stop"

echo "== bad settings are one line"
"$lockstep" run run.yaml run_dir=none data.reward=service data.reward_address=127.0.0.1:1 \
  data.reward_timeout_seconds=1 > none.log 2>&1 && fail "a run started without its reward service"
grep -q 'data.reward_address: the reward service 127.0.0.1:1 does not answer: .*refused' none.log || fail "none: $(cat none.log)"
expect_line "is no host:port" "$lockstep" run run.yaml run_dir=none data.reward=service

echo "== grade"
printf '%s\n' '{"response": "\\boxed{\\frac12}", "answer": "0.5"}' '{"response": "\\boxed{3}", "answer": "4"}' > graded.jsonl
cp graded.jsonl kept.jsonl
"$lockstep" grade graded.jsonl --out=out.jsonl | grep -q 'graded 2 lines: 1 right, mean reward 0.5000' || fail "grade"
[[ $(jq -c .reward out.jsonl | tr '\n' ' ') == '1.0 0.0 ' || $(jq -c .reward out.jsonl | tr '\n' ' ') == '1 0 ' ]] ||
  fail "rewards: $(cat out.jsonl)"
cmp -s graded.jsonl kept.jsonl || fail "--out changed the input"
"$lockstep" grade graded.jsonl --kind=exact > /dev/null || fail "grade in place"
jq -es 'all(.[]; .reward == 0)' graded.jsonl > /dev/null || fail "grade in place wrote $(cat graded.jsonl)"
echo nonsense >> graded.jsonl
expect_line "graded.jsonl:3: not JSON" "$lockstep" grade graded.jsonl
expect_line "must be exact, numeric, math" "$lockstep" grade graded.jsonl --kind=maths
expect_line "usage: lockstep grade" "$lockstep" grade
echo "passed"
