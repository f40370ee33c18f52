#!/usr/bin/env bash
# generate with a file of prompts, make-model, and what a run says of memory before it starts.
source "$(dirname "$(realpath "$0")")/lib.sh"
make_model

echo "== generate: one prompt as text, many as JSON lines, the same tokens"
greedy=(generate --model=base --greedy --max_tokens=30)
text=$("$lockstep" "${greedy[@]}" 'Q: 1+2=') || fail "generate"
[[ $(echo 'Q: 1+2=' | "$lockstep" "${greedy[@]}" -) == "$text" ]] || fail "the prompt from standard input gives something else"
printf '{"prompt": "Q: 1+2="}\n\n"Q: 3+4="\n{"question": "Q: 5+6="}\n{"tokens": [1, 2, 3]}\n' > prompts.jsonl
"$lockstep" "${greedy[@]}" --prompts=prompts.jsonl > out.jsonl || fail "generate --prompts"
[[ $(jq -c .line out.jsonl | tr '\n' ' ') == "1 3 4 5 " ]] || fail "lines out of order: $(cat out.jsonl)"
[[ $(head -n 1 out.jsonl | jq -r .text) == "$text" ]] || fail "'$(head -n 1 out.jsonl)' against '$text'"
jq -es 'all(.[]; (.tokens | length) == (.log_probs | length) and (.finish_reason | IN("stop", "length")))' out.jsonl \
  > /dev/null || fail "$(cat out.jsonl)"
jq -c '[.line, .tokens]' out.jsonl > file.tokens
"$lockstep" "${greedy[@]}" --prompts=- < prompts.jsonl | jq -c '[.line, .tokens]' | cmp -s - file.tokens ||
  fail "prompts from standard input give something else"
for _ in {1..60}; do echo '"Q: 1+2="'; done > many.jsonl
sampled=(generate --model=base --n=3 --max_tokens=30 --seed=4 --prompts=many.jsonl)
"$lockstep" "${sampled[@]}" > many.out || fail "60 prompts"
(($(wc -l < many.out) == 180)) || fail "60 prompts of 3 samples give $(wc -l < many.out) lines"
(($(jq -r .text many.out | sort -u | wc -l) > 1)) || fail "all samples are the same"
"$lockstep" "${sampled[@]}" | cmp -s - many.out || fail "the same seed gives other samples"
printf '"Q: 1"\n7\n' > bad.jsonl
expect_line "bad.jsonl:2: neither a JSON object nor a text" "$lockstep" "${greedy[@]}" --prompts=bad.jsonl
expect_line "nothing.jsonl does not exist" "$lockstep" "${greedy[@]}" --prompts=nothing.jsonl
expect_line "usage: lockstep generate" "$lockstep" "${greedy[@]}" one two

echo "== make-model: a folder that everything loads; the same seed gives the same file"
sed 's/"vocab_size": 24/"vocab_size": 40/' model/config.json > shape.json
"$lockstep" make-model --shape=shape.json --dtype=bf16 --seed=3 --tokenizer=base random > make.log || fail "make-model: $(cat make.log)"
"$lockstep" make-model --shape=shape.json --dtype=bf16 --seed=3 random2 > make.log || fail "make-model without a tokenizer"
cmp -s random/model.safetensors random2/model.safetensors || fail "the same seed gives another model"
"$lockstep" generate --model=random --max_tokens=8 'Q: 1' > /dev/null || fail "a made model does not generate"
"$lockstep" score --model=random2 <(echo '{"tokens": [39, 1]}') > /dev/null || fail "a made model does not score"
expect_line "exists already" "$lockstep" make-model --shape=shape.json random
expect_line "these are: qwen2.5-0.5b" "$lockstep" make-model --shape=gpt9 x
expect_line "usage: lockstep make-model" "$lockstep" make-model --shape=quickstart
expect_line "no token to score" "$lockstep" score --model=base <(echo '{"tokens": []}')

echo "== a run says what it takes of memory, and does not start when that is not there"
"$lockstep" run run.yaml trainer.max_steps=1 > run.log 2>&1 || fail "run: $(tail -n 3 run.log)"
grep -q '^memory: needs .*learner .*master.*2 rollout servers of ' run.log || fail "no memory line: $(head -n 3 run.log)"
huge=(run run.yaml run_dir=huge rollout.kv_cache_mib=99999999)
expect_line "memory: needs" "$lockstep" "${huge[@]}"
expect_line "set rollout.kv_cache_mib" "$lockstep" "${huge[@]}"
report=$("$lockstep" doctor run.yaml)
grep -q 'ok .*memory: needs' <<< "$report" || fail "doctor CONFIG: $report"
grep -Eq 'note +GPU +(NVIDIA driver [0-9.]+; runs with|no NVIDIA driver; everything)' <<< "$report" || fail "doctor: $report"
report=$("$lockstep" doctor run.yaml rollout.kv_cache_mib=99999999) && fail "doctor finds nothing missing: $report"
grep -q 'MISSING .*memory: needs' <<< "$report" || fail "doctor refuses nothing: $report"
echo "passed"
