#!/usr/bin/env bash
# The real Prometheus server scrapes a live run; its answers must agree with the ledger, and the rules must load.
source "$(dirname "$(realpath "$0")")/lib.sh"
make_model
command -v prometheus > /dev/null || fail "prometheus is not installed; deploy/install_deps.sh installs it"
"$lockstep" run run.yaml trainer.max_steps=100000 trainer.checkpoint_every=0 --detach > detach.log 2>&1 || fail "$(cat detach.log)"
wait_for 60 steps_done run 2 || fail "the run makes no steps"

for process in learner rollout-0 rollout-1; do
  address=$(<"run/$process.metrics")
  curl -sf "http://$address/metrics" > "$process.txt" || fail "$process does not answer on /metrics"
  promtool check metrics < "$process.txt" > lint.txt 2>&1 || fail "promtool on $process: $(cat lint.txt)"
done
grep -q '^rl_rollout_generated_tokens_total [1-9]' rollout-0.txt || fail "rollout-0 counts no tokens"
grep -q '^rl_learner_steps_total{outcome="committed"} [1-9]' learner.txt || fail "the learner counts no steps"

cat > prometheus.yml <<YAML
global: {scrape_interval: 1s}
scrape_configs:
  - job_name: lockstep
    static_configs:
      - {targets: ["$(<run/learner.metrics)"], labels: {component: learner, run_id: test}}
      - {targets: ["$(<run/rollout-0.metrics)", "$(<run/rollout-1.metrics)"], labels: {component: rollout, run_id: test}}
YAML
port=$((20000 + RANDOM % 20000))
prometheus --config.file=prometheus.yml --storage.tsdb.path=tsdb --web.listen-address=127.0.0.1:$port > prometheus.log 2>&1 &
query() { curl -sf --data-urlencode "query=$1" "http://127.0.0.1:$port/api/v1/query" | jq -r '.data.result[0].value[1] // empty'; }
all_up() { [[ $(query 'sum(up)') == 3 ]]; }
wait_for 60 all_up || fail "Prometheus does not see three targets: $(tail -n 3 prometheus.log)"
moving() { [[ -n $(query 'sum(rl_rollout_generated_tokens_total) > 0') ]]; }
wait_for 30 moving || fail "no generated tokens in Prometheus"
same_version() { [[ $(query 'max(rl_rollout_weight_version)') -ge 1 ]]; }
wait_for 30 same_version || fail "the rollout servers report no weight version"
"$lockstep" stop run || fail "stop"
kill %1
echo "passed"
