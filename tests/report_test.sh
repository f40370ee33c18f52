#!/usr/bin/env bash
# lockstep report on real runs: the page, TensorBoard's events while a run writes them and exported, and what is refused.
source "$(dirname "$(realpath "$0")")/lib.sh"
here=$bin/tests
page() { python3 "$here/page_check.py" "$1" || fail "$1 is not a sound page"; }
events() { "$here/event_dump" "$1" || fail "the event files of $1 are not sound"; }
make_model
head -n 12 rl.jsonl > heldout.jsonl
with_eval=(data.eval=heldout.jsonl eval.n=2 eval.max_problems=4 trainer.eval_every=2)

echo "== a run's events are the figures of metrics.jsonl"
"$lockstep" run run.yaml run_dir=runs/one "${with_eval[@]}" > one.log 2>&1 || fail "one: $(tail -n 3 one.log)"
events runs/one/tensorboard > one.events
for figure in reward_mean:train/reward loss:train/loss grad_norm:optim/grad_norm response_tokens:train/response_tokens; do
  want=$(jq -r "select(has(\"eval\") | not) | \"\\(.step) \\(.${figure%%:*})\"" runs/one/metrics.jsonl)
  have=$(sed -n "s#^\([0-9]*\) ${figure##*:} #\1 #p" one.events)
  [[ $(wc -l <<< "$have") == 4 ]] || fail "$figure has other steps: $have"
  paste -d' ' <(echo "$want") <(echo "$have") | awk '$1 != $3 || ($2 - $4) ^ 2 > 1e-12 * $2 ^ 2 {exit 1}' || fail "$figure: $want; $have"
done
[[ $(grep -c ' eval/pass_at_1 ' one.events) == 3 ]] || fail "evaluations are due at steps 0, 2 and 4: $(grep eval/ one.events)"
grep -q ' eval/pass_at_2 ' one.events || fail "no pass@2"
grep -q '^4 optim/skipped 0$' one.events || fail "a figure of 0 is not there"

echo "== a resume does steps again, and a reader sees each of them once, as in the run that was not cut"
"$lockstep" run run.yaml run_dir=cut "${with_eval[@]}" trainer.max_steps=3 > cut.log 2>&1 || fail "cut: $(tail -n 3 cut.log)"
rm -r cut/checkpoints/step-3 # step 3 comes after the last checkpoint
"$lockstep" run run.yaml run_dir=cut "${with_eval[@]}" --resume > cut.log 2>&1 || fail "resume: $(tail -n 3 cut.log)"
[[ $(find cut/tensorboard -type f | wc -l) == 2 ]] || fail "a start has a file of its own: $(ls cut/tensorboard)"
events cut/tensorboard > cut.events
same() { grep -v ' perf/\| eval/seconds ' "$1"; } # all but times; the cut run evaluated its step 3, the last of its first part
diff <(same one.events) <(same cut.events | grep -v '^3 eval/') > diff.log || fail "events differ: $(head -n 5 diff.log)"
[[ $(wc -l < cut/starts.jsonl) == 2 ]] || fail "starts.jsonl: $(cat cut/starts.jsonl)"

echo "== events that cannot be written cost no step"
mkdir blocked && touch blocked/tensorboard
"$lockstep" run run.yaml run_dir=blocked > blocked.log 2>&1 || fail "blocked: $(tail -n 3 blocked.log)"
steps_done blocked 4 || fail "blocked has other steps"
grep -q 'tensorboard' blocked/logs/learner.log || fail "nothing is logged"

echo "== an export has the same figures as the live events, a supervised run's too"
"$lockstep" report runs/one pretrain --tensorboard=exported > /dev/null || fail "export"
diff one.events <(events exported/one) > diff.log || fail "exported events differ: $(head -n 5 diff.log)"
diff <(events pretrain/tensorboard) <(events exported/pretrain) > diff.log || fail "pretrain: $(head -n 5 diff.log)"
events exported/pretrain | grep -q 'train/reward\|mismatch/' && fail "a supervised run has figures of sampling"
[[ ! -e report.html ]] || fail "--tensorboard alone writes a page"

echo "== the page of two seeds and another type"
"$lockstep" run run.yaml run_dir=runs/two seed=6 "${with_eval[@]}" > two.log 2>&1 || fail "two: $(tail -n 3 two.log)"
"$lockstep" run run.yaml run_dir=runs/bf16 learner.dtype=bf16 "${with_eval[@]}" > bf16.log 2>&1 || fail "bf16"
cat > claims.json <<'JSON'
{"title": "Claims & <figures>", "claims": [{"id": "C1", "claim": "<script>alert(1)</script>", "paper_figure": "Fig. 3 & 4",
 "ours": 0.25, "verdict": "holds", "command": "lockstep run a.yaml && echo \"done\""}]}
JSON
before=$(find runs -type f | sort | xargs md5sum)
"$lockstep" report runs --claims=claims.json --name='A < B & "C"' --out=page.html > page.log || fail "report: $(cat page.log)"
[[ $before == "$(find runs -type f | sort | xargs md5sum)" ]] || fail "the report changed a run folder"
page page.html > page.text
(($(sed -n '1s/ .*//p' page.text) >= 12)) || fail "fewer figures than expected: $(head -n 1 page.text)"
for text in 'A < B & "C"' '3 runs in 2 groups, 12 steps' 'Claims & <figures>' '<script>alert(1)</script>' 'Fig. 3 & 4' \
  'learner.dtype=bf16' 'Figure 1. Reward' 'pass@2' 'Where the time went' 'Recomputing old log-probs'; do
  grep -qF "$text" page.text || fail "the page does not say: $text"
done

echo "== groups by name; a supervised run; a run of one step; a run without a step"
"$lockstep" report --group='x<y:runs/one,runs/bf16' runs/two --out=named.html > /dev/null || fail "--group"
page named.html | grep -qF 'x<y' || fail "the label is missing"
"$lockstep" report pretrain --out=pretrain.html > /dev/null || fail "report of pretrain"
page pretrain.html | grep -q 'last loss' || fail "no loss"
"$lockstep" run run.yaml run_dir=first trainer.max_steps=1 > first.log 2>&1 || fail "first"
cp -r first empty && sqlite3 empty/ledger.db 'UPDATE groups SET committed = 0; DELETE FROM steps' || fail "sqlite3"
for run in first empty; do
  "$lockstep" report "$run" --out="$run.html" > /dev/null || fail "report of $run"
  page "$run.html" > "$run.text"
done
grep -q 'No step was finished yet' empty.text || fail "empty: $(head -c 300 empty.text)"

echo "== a report beside a run that goes on: the run does not notice"
"$lockstep" run run.yaml run_dir=live trainer.max_steps=30 > live.log 2>&1 &
live=$!
wait_for 60 steps_done live 1 || fail "live: $(tail -n 3 live.log)"
"$lockstep" report live --out=live.html > /dev/null || fail "report of a live run"
page live.html > /dev/null
wait "$live" || fail "live: $(tail -n 3 live.log)"
steps_done live 30 && ! grep -qi 'warning\|locked' live/logs/learner.log || fail "live: $(tail -n 5 live/logs/learner.log)"

echo "== what cannot be reported is refused in one line"
mkdir nothing foreign damaged
echo 'not a database, though it is long enough to look at' > foreign/ledger.db
printf '{"step":1,"loss":1}\n{"step":2,"lo\n' > damaged/metrics.jsonl
expect_line "missing is not a folder" "$lockstep" report missing
expect_line "nothing is not the folder of a run" "$lockstep" report nothing
expect_line "foreign/ledger.db cannot be read as the ledger of a run" "$lockstep" report foreign
expect_line "damaged/metrics.jsonl:2:" "$lockstep" report damaged
expect_line "cannot write no/such/page.html" "$lockstep" report runs/one --out=no/such/page.html
expect_line "is not LABEL:RUN,RUN" "$lockstep" report runs/one --group=x
expect_line "usage: lockstep report" "$lockstep" report
echo '[{"id": "C1", "clam": "x"}]' > bad.json
expect_line "bad.json: claim 1: unknown key 'clam'" "$lockstep" report runs/one --claims=bad.json
PATH=/nowhere expect_line "gnuplot" "$lockstep" report runs/one
