# What a figure leaves behind. Sourced by experiments/run, which has set lockstep, dir, results, pictures, every and members.

# FIGURE.json, of what there is of its runs, finished or not; the curves, and the page.
write_results() {
  local figure=$1 run done folders=()
  [[ $figure == mismatch* ]] && return
  for run in ${members[$figure]}; do
    [[ -s $dir/runs/$run/metrics.jsonl ]] && folders+=("$dir/runs/$run")
  done
  ((${#folders[@]} > 0)) || { echo "experiments: $figure has no run with a step yet" >&2; return; }
  for run in "${folders[@]##*/}"; do
    done=false
    finished "$run" && done=true
    jq -s -c --argjson every "$every" -f "$here/results.jq" "$dir/runs/$run/metrics.jsonl" |
      jq -c --arg run "$run" --argjson finished "$done" \
        '{run: $run, variant: ($run | sub("-seed[0-9]+$"; "")), seed: ($run | capture("-seed(?<n>[0-9]+)$").n | tonumber),
          finished: $finished} + .'
  done | jq -s --arg figure "$figure" '{figure: $figure, runs: .}' > "$results/$figure.json.part" || return
  jq -r '"{\"figure\": \"" + .figure + "\", \"runs\": [", (.runs | to_entries[] | (if .key > 0 then "," else " " end) + (.value | tojson)), "]}"' \
    "$results/$figure.json.part" > "$results/$figure.json" && rm "$results/$figure.json.part"
  echo "results: $results/$figure.json"
  if command -v gnuplot > /dev/null; then
    if [[ $figure != recompute ]]; then  # that one is about seconds; its curves say nothing
      "$here/plot.sh" "$results/$figure.json" "$pictures/$figure.svg" && echo "curves: $pictures/$figure.svg"
    fi
    "$lockstep" report "${folders[@]}" --out="$dir/$figure.html" --name="experiments/run $figure" > "$dir/$figure.report.log" 2>&1 &&
      echo "report: $dir/$figure.html" || echo "report: $(tail -n 1 "$dir/$figure.report.log")" >&2
  fi
}

# Claims 1 and 2: the paper's offline analysis of the base model by `lockstep mismatch`, each pair on tokens that its own
# rollout engine drew.
mismatch_pairs=bf16/bf16,fp16/fp16,bf16/fp16,bf16/fp32,fp16/fp32,fp32/fp32,bf16/bf16@matched,fp16/fp16@matched
run_mismatch() { # FIGURE MODEL MAX_TOKENS
  local figure=$1 model=$2 max_tokens=$3 out=$dir/$1 limit=100 samples=8
  ((quick)) && limit=4 samples=2
  prepare_model "$model" || return
  run_job "$figure" "$out.log" "$lockstep" mismatch --model="$dir/models/$model/base" \
    --prompts="$dir/models/$model/perfectible.jsonl" --limit="$limit" --n="$samples" --max_tokens="$max_tokens" --sample=own \
    --pairs="$mismatch_pairs" --points=400 --threads=1 --out="$out" || return
  jq -f "$here/mismatch.jq" "$out/mismatch.json" > "$results/$figure.json" || return
  mkdir -p "$pictures"
  local picture prefix=''
  [[ $figure == mismatch ]] || prefix=${figure#mismatch_}-
  for picture in sequences.png tokens-bf16-fp32.svg tokens-fp16-fp32.svg; do
    [[ -f $out/$picture ]] && cp "$out/$picture" "$pictures/$prefix$picture"
  done
  echo "results: $results/$figure.json"
}
