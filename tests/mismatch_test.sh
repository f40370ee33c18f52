#!/usr/bin/env bash
# lockstep mismatch: figures, plots, what is kept, what is refused; its mu is a rollout server's, to the bit.
source "$(dirname "$(realpath "$0")")/lib.sh"
make_model
printf '{"prompt": "Q: 1+2="}\n\n"Q: 34+5="\n{"question": "Q: 9+9="}\n{"tokens": [1, 2, 3]}\n' > prompts.jsonl

echo "== every pair has every figure; a matched pair of equal dtypes is exactly 0"
pairs=bf16/bf16,fp16/fp16,bf16/fp16,bf16/fp32,bf16/bf16@matched,fp16/fp16@matched,fp32/fp32@matched
mismatch=("$lockstep" mismatch --model=base --prompts=prompts.jsonl --pairs=$pairs --n=6 --max_tokens=60 --lengths=spread
  --points=40 --threads=1)
"${mismatch[@]}" --out=first > first.log 2>&1 || fail "mismatch: $(tail -n 3 first.log)"
jq -e '.source == "shared" and .num_prompts == 4 and .n == 6 and .temperature == 1 and .lengths == "spread" and
  (.pairs | length) == 7' first/mismatch.json > /dev/null || fail "$(jq 'del(.pairs)' first/mismatch.json)"
jq -e 'all(.pairs[];
  ([.kl_k1, .kl_k3, .mean_abs_log_ratio, .max_abs_log_ratio, .slope, .intercept, .slope_through_origin, .sequence_kl,
    .mean_abs_probability_difference, .max_abs_probability_difference, .probability_correlation, .num_tokens] |
    all(type == "number")) and
  .num_sequences == 24 and .num_tokens > 100 and .drawn_by == "bf16 native" and
  .token_points.count == 40 and .token_points.of == .num_tokens and
  (.token_points.mu | length) == 40 and (.token_points.pi | length) == 40 and
  all(.token_points.mu[], .token_points.pi[]; . > 0 and . <= 1) and
  (.sequence_points.length | length) == 24 and (.sequence_points.length | add) == .num_tokens and
  (.sequence_points.log_ratio | length) == 24)' first/mismatch.json > /dev/null || fail "$(cat first/mismatch.json)"
jq -e 'all(.pairs[] | select(.numerics == "matched"); .kl_k1 == 0 and .kl_k3 == 0 and .max_abs_log_ratio == 0 and
  .mean_abs_probability_difference == 0 and .slope == 0 and all(.sequence_points.log_ratio[]; . == 0))' \
  first/mismatch.json > /dev/null || fail "a matched pair is not 0: $(cat first/mismatch.json)"
jq -e 'all(.pairs[] | select(.learner_dtype != .rollout_dtype); .kl_k3 > 0 and .max_abs_log_ratio > 0)' \
  first/mismatch.json > /dev/null || fail "different dtypes agree"
grep -q 'bf16/fp32 ' first.log || fail "no table: $(cat first.log)"

echo "== the plots are there and whole"
for name in sequences tokens-bf16-bf16 tokens-fp16-fp16-matched tokens-bf16-fp32; do
  [[ $(head -c 8 first/$name.png | od -An -tx1 | tr -d ' ') == 89504e470d0a1a0a ]] || fail "$name.png is no PNG"
  [[ $(tail -c 8 first/$name.png | od -An -tx1 | tr -d ' ') == 49454e44ae426082 ]] || fail "$name.png has no end"
  python3 -c 'import sys, xml.dom.minidom as x; x.parse(sys.argv[1])' first/$name.svg || fail "$name.svg is not XML"
done
grep -q 'bf16/fp32: slope ' first/sequences.svg || fail "no slope in the legend"

echo "== what is kept is not computed again; a new pair computes what is new alone"
cp first/mismatch.json before.json
"${mismatch[@]}" --out=first > again.log 2>&1 || fail "again: $(tail -n 3 again.log)"
cmp -s before.json first/mismatch.json || fail "the second time gives something else"
grep -q 'loading\|tokens in' again.log && fail "it was computed again: $(cat again.log)"
# A file that was cut short is made again.
kept=$(ls first/scores/pi-fp16-native-*.jsonl)
head -c 100 "$kept" > cut && cp cut "$kept"
"${mismatch[@]}" --out=first > again.log 2>&1 || fail "after a cut: $(tail -n 3 again.log)"
cmp -s before.json first/mismatch.json || fail "the repaired file gives something else"
(($(grep -c 'tokens in' again.log) == 1)) || fail "more than one pass was computed: $(cat again.log)"
# Another temperature is another analysis.
"${mismatch[@]}" --out=first --temperature=0.7 --pairs=fp16/fp16@matched > again.log 2>&1 || fail "temperature"
(($(grep -c 'tokens in' again.log) == 2)) || fail "samples and training pass: $(cat again.log)"
jq -e '.pairs[0].max_abs_log_ratio == 0' first/mismatch.json > /dev/null || fail "matched at temperature 0.7"

echo "== mu is what a rollout server says of the tokens that it draws"
"$lockstep" generate --model=base --dtype=fp16 --n=3 --max_tokens=40 --prompts=prompts.jsonl > drawn.jsonl || fail "generate"
"$lockstep" mismatch --model=base --tokens=drawn.jsonl --pairs=fp16/fp16@matched,fp16/fp16 --out=given > given.log 2>&1 ||
  fail "--tokens: $(tail -n 3 given.log)"
jq -e '.source == "tokens" and .pairs[0].drawn_by == null and .pairs[0].max_abs_log_ratio == 0' given/mismatch.json \
  > /dev/null || fail "$(cat given/mismatch.json)"
# Both files have FP32 numbers, written in two ways.
as_floats='import json, struct, sys
for line in open(sys.argv[1]): print([struct.pack("f", x).hex() for x in json.loads(line)["log_probs"]])'
python3 -c "$as_floats" drawn.jsonl > drawn.bits
python3 -c "$as_floats" given/scores/mu-fp16-matched-*.jsonl > given.bits
cmp drawn.bits given.bits || fail "mu is not the rollout server's"

echo "== --sample=own: each rollout engine draws its own"
"$lockstep" mismatch --model=base --prompts=prompts.jsonl --pairs=bf16/bf16,fp16/fp16,bf16/fp16 --sample=own --limit=2 \
  --n=4 --max_tokens=30 --out=own > own.log 2>&1 || fail "own: $(tail -n 3 own.log)"
jq -e '[.pairs[].drawn_by] == ["bf16 native", "fp16 native", "fp16 native"] and .num_prompts == 2' own/mismatch.json \
  > /dev/null || fail "$(cat own/mismatch.json)"
(($(ls own/scores/samples-*.jsonl | wc -l) == 2)) || fail "own samples: $(ls own/scores)"

echo "== Ctrl-C ends it soon; what was computed is kept"
"$lockstep" make-model --shape=quickstart --tokenizer=base slow > /dev/null || fail "make-model"
long=("$lockstep" mismatch --model=slow --prompts=prompts.jsonl --limit=3 --n=2000 --max_tokens=100 --out=long --threads=1)
"${long[@]}" > long.log 2>&1 &
pid=$!
wait_for 60 grep -q 'samples: .* of at most' long.log || fail "no progress line: $(cat long.log)"
kill -INT $pid
wait $pid
code=$?
((code == 130)) || fail "exit code $code after Ctrl-C: $(cat long.log)"
grep -q 'stopped; what had been computed is kept in long' long.log || fail "$(cat long.log)"
[[ ! -e long/mismatch.json ]] || fail "a stopped analysis has a result"

echo "== bad input is one line"
base=("$lockstep" mismatch --model=base --out=bad)
expect_line "give either --prompts" "${base[@]}"
expect_line "give either --prompts" "${base[@]}" --prompts=prompts.jsonl --tokens=drawn.jsonl
expect_line "'bf16/int8' is not LEARNER/ROLLOUT" "${base[@]}" --prompts=prompts.jsonl --pairs=bf16/int8
expect_line "names bf16/bf16 twice" "${base[@]}" --prompts=prompts.jsonl --pairs=bf16/bf16,bf16/bf16@native
expect_line "cannot read nothing.jsonl" "${base[@]}" --prompts=nothing.jsonl
expect_line "--sample is 'mine'" "${base[@]}" --prompts=prompts.jsonl --sample=mine
expect_line "--lengths: '0' is not 1 to --max_tokens, 100" "${base[@]}" --prompts=prompts.jsonl --lengths=64,0 --max_tokens=100
expect_line "--n is 0, must be 1 to 10000" "${base[@]}" --prompts=prompts.jsonl --n=0
expect_line "max_tokens 4000, above the model's 128 positions" "${base[@]}" --prompts=prompts.jsonl --max_tokens=4000
expect_line "--colour is not a flag" "${base[@]}" --colour=red
expect_line "usage: lockstep mismatch" "${base[@]}" prompts.jsonl
expect_line "no-model" "$lockstep" mismatch --model=no-model --prompts=prompts.jsonl --out=bad
printf '"Q: 1"\n{"tokens": [1, 99]}\n' > bad.jsonl
expect_line "bad.jsonl:2: tokens[1] is 99" "${base[@]}" --prompts=bad.jsonl --max_tokens=10
printf 'nonsense\n' > bad.jsonl
expect_line "bad.jsonl:1: not JSON" "${base[@]}" --prompts=bad.jsonl --max_tokens=10
printf '{"prompt": "Q: 1"}\n' > bad.jsonl
expect_line "bad.jsonl:1: neither tokens nor a text under response" "${base[@]}" --tokens=bad.jsonl
printf '{"tokens": [1, 2], "num_prompt_tokens": 3}\n' > bad.jsonl
expect_line "bad.jsonl:1: num_prompt_tokens must be 1 to the number of tokens" "${base[@]}" --tokens=bad.jsonl
printf '' > bad.jsonl
expect_line "bad.jsonl has no line" "${base[@]}" --prompts=bad.jsonl --max_tokens=10
expect_line "gnuplot-nox" env PATH=/nonexistent "${mismatch[@]}" --out=first
echo "passed"
