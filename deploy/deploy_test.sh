#!/bin/bash
# Checks deploy/ without a running system: promtool on configuration, rules and their tests; every alert has a runbook
# heading, a firing and a silent case; the dashboard is sound; only metrics of the table occur in both, and every metric
# of the table is set somewhere in the sources.
set -uo pipefail
dump_metrics=$(realpath "${1:?usage: deploy_test.sh DUMP_METRICS}")
cd "$(dirname "$(realpath "$0")")/.." || exit 1
failures=0
fail() {
  echo "FAILED: $*" >&2
  failures=$((failures + 1))
}
for tool in promtool jq; do
  command -v "$tool" > /dev/null || { echo "FAILED: $tool is not installed; run deploy/install_deps.sh" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$dump_metrics" | sort -u > "$work/table"

promtool check config deploy/prometheus/prometheus.yml > "$work/out" 2>&1 || fail "promtool check config: $(cat "$work/out")"
promtool check rules deploy/prometheus/rules.yml > "$work/out" 2>&1 || fail "promtool check rules: $(cat "$work/out")"
(cd deploy/prometheus && promtool test rules rules_test.yml) > "$work/out" 2>&1 || fail "promtool test rules: $(cat "$work/out")"

# Alerts: runbook heading, link to it, a case that fires and one that does not.
sed -n 's/^ *- alert: //p' deploy/prometheus/rules.yml > "$work/alerts"
[[ $(wc -l < "$work/alerts") -ge 15 ]] || fail "fewer alerts than expected in rules.yml"
while read -r alert; do
  grep -q "^## $alert\$" deploy/RUNBOOK.md || fail "RUNBOOK.md has no heading for $alert"
  grep -q "runbook_url: deploy/RUNBOOK.md#${alert,,}\$" deploy/prometheus/rules.yml || fail "$alert has no runbook_url"
  cases=$(grep -A1 "alertname: $alert\$" deploy/prometheus/rules_test.yml)
  grep -q 'exp_alerts:$' <<< "$cases" || fail "rules_test.yml has no case in which $alert fires"
  grep -q 'exp_alerts: \[\]' <<< "$cases" || fail "rules_test.yml has no case in which $alert stays silent"
done < "$work/alerts"

# The dashboard: valid JSON, unique ids, provisioned form, every expression a valid one.
dashboard=deploy/grafana/lockstep.json
if jq -e . "$dashboard" > /dev/null; then
  [[ $(jq '[.panels[].id] | length == (unique | length)' "$dashboard") == true ]] || fail "panel ids are not unique"
  [[ $(jq '.id == null and .editable == false and (.uid | length > 0)' "$dashboard") == true ]] || fail "dashboard id, uid or editable"
  jq -r '.panels[].targets[]?.expr, .annotations.list[].expr' "$dashboard" |
    sed 's/\$__rate_interval/1m/g; s/\$run_id/r/g; s/\$instance/.+/g; s/\$component/.+/g' > "$work/exprs"
  [[ $(wc -l < "$work/exprs") -ge 30 ]] || fail "the dashboard has fewer expressions than expected"
  jq -R '{record: "check:expr:line", expr: .}' "$work/exprs" |
    jq -s '{groups: [{name: "dashboard", rules: [to_entries[] | .value + {record: ("check:expr:line" + (.key | tostring))}]}]}' \
    > "$work/dashboard_rules.yml"
  promtool check rules "$work/dashboard_rules.yml" > "$work/out" 2>&1 || fail "dashboard expressions: $(cat "$work/out")"
  jq -r '.templating.list[].query' "$dashboard" >> "$work/exprs"
else
  fail "$dashboard is not valid JSON"
fi
for file in deploy/grafana/provisioning/*/*.yml; do
  grep -q '^apiVersion: 1$' "$file" || fail "$file has no apiVersion"
done

# Names: rl_* and process_* of rules and dashboard are in the table (recording rules carry colons and are left out).
{
  grep -v '^ *#\|record:\|description\|summary\|runbook_url' deploy/prometheus/rules.yml
  cat "$work/exprs"
} | sed 's/[a-z]*:[a-z_]*:[a-z0-9_]*//g' | grep -oE '\b(rl|process)_[a-z0-9_]+' | sort -u > "$work/used"
[[ $(wc -l < "$work/used") -ge 40 ]] || fail "fewer metrics used than expected"
unknown=$(comm -23 "$work/used" "$work/table")
[[ -z $unknown ]] || fail "not in the metrics table: $unknown"

# Shown: each metric of the table is in a panel, except these, which say what a panel would not.
not_shown="rl_build_info" # always 1; the list of runs is made of it
jq -r '.panels[].targets[]?.expr' "$dashboard" | grep -oE '\brl_[a-z0-9_]+' | sed -E 's/_(bucket|sum|count)$//' | sort -u > "$work/shown"
"$dump_metrics" --markdown | sed -n 's/^| \(rl_[a-z0-9_]*\) .*/\1/p' | sort -u > "$work/metrics"
[[ $(wc -l < "$work/metrics") -ge 60 ]] || fail "dump_metrics --markdown lists fewer metrics than expected"
unseen=$(comm -23 "$work/metrics" <(tr ' ' '\n' <<< "$not_shown" | sort -u - "$work/shown"))
[[ -z $unseen ]] || fail "no panel of the dashboard shows: $(tr '\n' ' ' <<< "$unseen")"
for name in $not_shown; do
  grep -qx "$name" "$work/metrics" || fail "listed as not shown, but not in the metrics table: $name"
  grep -qx "$name" "$work/shown" && fail "listed as not shown, but a panel shows it: $name"
done
# Panels do not lie on each other.
overlaps=$(jq -r '[.panels[] | {t: .title, x: .gridPos.x, y: .gridPos.y, w: .gridPos.w, h: .gridPos.h}] | . as $p |
  range(length) as $i | range($i + 1; length) as $j | $p[$i] as $a | $p[$j] as $b |
  select($a.x < $b.x + $b.w and $b.x < $a.x + $a.w and $a.y < $b.y + $b.h and $b.y < $a.y + $a.h) | "\($a.t) and \($b.t)"' "$dashboard")
[[ -z $overlaps ]] || fail "panels lie on each other: $overlaps"

# Exported: each metric of the table is named by the code of a component (common ones by engine/base itself).
"$dump_metrics" --markdown | sed -n 's/^| \(rl_[a-z_]*\) .*/\1/p' | while read -r name; do
  grep -rqF "\"$name\"" --include='*.cc' --include='*.h' --exclude='*_test.cc' --exclude=metrics_table.cc \
    rollout_server learner weight_sync engine/base || echo "$name"
done > "$work/unset"
[[ ! -s $work/unset ]] || fail "in the metrics table but set nowhere: $(tr '\n' ' ' < "$work/unset")"

# docs/metrics.md holds the table as it is.
"$dump_metrics" --markdown > "$work/markdown"
sed -n '/^| metric /,/^$/p' docs/metrics.md | sed '/^$/d' | cmp -s - "$work/markdown" ||
  fail "docs/metrics.md is not current: replace its table by the output of bazel run //engine/base:dump_metrics -- --markdown"

# A run's targets from its address files.
mkdir "$work/run1"
echo "127.0.0.1:4001" > "$work/run1/rollout-0.metrics"
echo "127.0.0.1:4002" > "$work/run1/learner.metrics"
targets=$(deploy/prometheus/targets.sh "$work/run1" | jq -c 'map([.targets[0], .labels.component, .labels.run_id])')
[[ $targets == '[["127.0.0.1:4002","learner","run1"],["127.0.0.1:4001","rollout","run1"]]' ]] || fail "targets.sh printed $targets"
deploy/prometheus/targets.sh "$work" > /dev/null 2>&1 && fail "targets.sh accepted a folder without addresses"

[[ $failures -eq 0 ]] || exit 1
echo "deploy: all checks passed ($(wc -l < "$work/alerts") alerts, $(wc -l < "$work/exprs") expressions, $(wc -l < "$work/table") series names)"
