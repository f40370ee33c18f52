#!/bin/bash
# Prints the scrape targets of a run as file_sd JSON, from the metrics addresses that its processes wrote.
#   targets.sh RUN > targets/NAME.json
set -euo pipefail
if [[ $# -ne 1 || ! -d "$1" ]]; then
  echo "error: usage: targets.sh RUN (a run folder)" >&2
  exit 2
fi
run_id=$(basename "$(realpath "$1")")
shopt -s nullglob
files=("$1"/*.metrics)
if [[ ${#files[@]} -eq 0 ]]; then
  echo "error: $1: has no *.metrics file; is the run started?" >&2
  exit 2
fi
for file in "${files[@]}"; do
  name=$(basename "$file" .metrics)
  # rollout-0.metrics, learner.metrics, learner-1.metrics
  jq -n --arg run "$run_id" --arg component "${name%%-*}" --arg pod "$name" --arg address "$(tr -d '[:space:]' < "$file")" \
    '{targets: [$address], labels: {run_id: $run, component: $component, pod: $pod}}'
done | jq -s .
