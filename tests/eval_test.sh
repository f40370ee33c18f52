#!/usr/bin/env bash
# Held-out evaluation in a run, after a resume and on its own; log-probs of given tokens from both engines.
source "$(dirname "$(realpath "$0")")/lib.sh"
make_model
head -n 12 rl.jsonl > heldout.jsonl
with_eval=(data.eval=heldout.jsonl eval.n=4 eval.max_problems=10)

echo "== a run with evaluations has the figures and weights of one without"
"$lockstep" run run.yaml run_dir=plain > plain.log 2>&1 || fail "plain: $(tail -n 3 plain.log)"
"$lockstep" run run.yaml run_dir=with "${with_eval[@]}" trainer.eval_every=3 > with.log 2>&1 || fail "with: $(tail -n 3 with.log)"
[[ $(figures plain) == "$(figures with)" ]] || fail "figures differ: $(diff <(figures plain) <(figures with))"
cmp -s {plain,with}/checkpoints/step-4/model.safetensors || fail "the last weights differ"
[[ $(evaluations with | jq -c .step | tr '\n' ' ') == "0 3 4 " ]] ||
  fail "evaluations are due at steps 0, 3 and 4 (the last): $(evaluations with)"
evaluations with | jq -es 'all(.[]; .eval.problems == 10 and .eval.n == 4 and .eval["pass@1"] <= .eval["pass@4"])' \
  > /dev/null || fail "evaluations: $(evaluations with)"
grep -q 'eval at step 4  pass@1' with.log || fail "the view shows no evaluation: $(tail -n 5 with.log)"
"$lockstep" summary with | grep -q '^  steps  *4$' || fail "summary counts evaluations as steps"

echo "== the same seed gives the same evaluations, on one server as on two"
"$lockstep" run run.yaml run_dir=again "${with_eval[@]}" trainer.eval_every=3 rollout.num_servers=1 > again.log 2>&1 ||
  fail "again: $(tail -n 3 again.log)"
[[ $(evaluations with) == "$(evaluations again)" ]] || fail "$(diff <(evaluations with) <(evaluations again))"

echo "== a resume evaluates no step twice: the lines are the same with their times, and none is missing"
"$lockstep" run run.yaml run_dir=cut "${with_eval[@]}" trainer.eval_every=1 trainer.max_steps=3 > cut.log 2>&1 || fail "cut"
grep '"eval":' cut/metrics.jsonl > before.jsonl
rm -r cut/checkpoints/step-3  # step 3 and its evaluation come after the checkpoint and are done again
"$lockstep" run run.yaml run_dir=cut "${with_eval[@]}" trainer.eval_every=1 --resume > cut.log 2>&1 || fail "resume: $(tail -n 3 cut.log)"
grep '"eval":' cut/metrics.jsonl > after.jsonl
[[ $(head -n 4 after.jsonl) == "$(< before.jsonl)" && $(wc -l < after.jsonl) == 5 ]] || fail "$(diff before.jsonl after.jsonl)"
[[ $(figures plain) == "$(figures cut)" ]] || fail "figures differ: $(diff <(figures plain) <(figures cut))"

echo "== other settings at a resume are evaluated anew"
rm -r cut/checkpoints/step-4
"$lockstep" run run.yaml run_dir=cut "${with_eval[@]}" eval.n=2 trainer.eval_every=1 --resume > cut.log 2>&1 || fail "resume: $(tail -n 3 cut.log)"
[[ $(evaluations cut | tail -n 1 | jq -c '[.step, .eval.n]') == "[4,2]" ]] || fail "$(evaluations cut)"

echo "== one step ahead, training groups that finish during an evaluation are kept"
"$lockstep" run run.yaml run_dir=ahead "${with_eval[@]}" trainer.eval_every=1 algorithm.max_staleness=1 > ahead.log 2>&1 ||
  fail "ahead: $(tail -n 3 ahead.log)"
[[ $(evaluations ahead | wc -l) == 5 ]] || fail "$(evaluations ahead)"
steps_done ahead 4 || fail "the run one step ahead has $(wc -l < ahead/metrics.jsonl) lines"

echo "== lockstep eval gives what the run's own evaluation of the same weights gave"
"$lockstep" eval --model=base --data=heldout.jsonl --n=4 --limit=10 --max_tokens=40 --reward=numeric --seed=5 \
  --out=eval.json > eval.log 2>&1 || fail "eval: $(tail -n 3 eval.log)"
grep -q 'pass@1 ' eval.log || fail "eval prints no table: $(cat eval.log)"
strip='del(.seconds, .weight_version)'
[[ $(jq -cS ".results | $strip" eval.json) == "$(evaluations with | head -n 1 | jq -cS ".eval | $strip")" ]] ||
  fail "eval.json: $(jq -c .results eval.json); the run: $(evaluations with | head -n 1)"
(($(jq '.problems | length' eval.json) == 10)) || fail "eval.json has no entry for each problem"
cp plain/config.yaml before.yaml
"$lockstep" eval run.yaml run_dir=plain "${with_eval[@]}" --model=plain/checkpoints/step-4 > eval.log 2>&1 || fail "eval CONFIG: $(tail -n 3 eval.log)"
[[ -f plain/eval/eval.json ]] || fail "eval CONFIG writes eval.json into RUN/eval"
cmp -s before.yaml plain/config.yaml || fail "eval changed the run's config.yaml"

echo "== what cannot be evaluated is refused in one line"
expect_line "trainer.eval_every: 2 evaluates on data.eval" "$lockstep" run run.yaml run_dir=x trainer.eval_every=2
expect_line "data.eval: is not set" "$lockstep" eval --model=base
expect_line "data: none.jsonl does not exist" "$lockstep" eval --model=base --data=none.jsonl
expect_line "eval.temperature: 0 is greedy" "$lockstep" eval --model=base --data=heldout.jsonl --temperature=0
expect_line "lower eval.max_tokens" "$lockstep" eval --model=base --data=heldout.jsonl --max_tokens=128 --reward=numeric
printf '{"prompt": "1+1=", "answer": "2"}\n{"prompt": 1}\n' > bad.jsonl
expect_line "bad.jsonl:2" "$lockstep" eval --model=base --data=bad.jsonl --max_tokens=8

echo "== score: the engines agree to the bit in matched numerics, in each dtype"
printf '{"tokens": [1, 2, 3, 4, 5]}\n{"prompt": "Q: 1+2=", "response": "A: 3"}\n' > score.jsonl
for dtype in fp16 bf16 fp32; do
  for engine in learner rollout; do
    "$lockstep" score --model=base --engine=$engine --dtype=$dtype score.jsonl > "$engine.out" || fail "score $engine $dtype"
  done
  cmp -s learner.out rollout.out || fail "$dtype: $(diff learner.out rollout.out)"
  [[ $(jq -c '.log_probs | length' learner.out | tr '\n' ' ') == "5 11 " ]] || fail "score: $(cat learner.out)"
done
"$lockstep" score --model=base --out=score.out - < score.jsonl || fail "score from standard input"
[[ $(wc -l < score.out) == 2 ]] || fail "score --out"
expect_line "--engine is 'x'" "$lockstep" score --model=base --engine=x score.jsonl
echo '{"tokens": [1, 999]}' > wide.jsonl
expect_line "wide.jsonl:1: tokens[1] is 999" "$lockstep" score --model=base wide.jsonl
echo "passed"
