#!/usr/bin/env bash
# README command two: installs what is missing, builds everything and runs every test. Ends with `N passed, N failed`.
#   tests/run_all.sh [--quick]     --quick leaves out the tests tagged heavy
set -uo pipefail
cd "$(dirname "$0")/.."

deploy/install_deps.sh || exit 1

targets=(//...)
filters=()
[[ ${1:-} == --quick ]] && filters+=(--test_tag_filters=-heavy)

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "run_all: building"
if ! bazel build "${targets[@]}" --noshow_progress; then
  echo "run_all: the build failed; see the lines above" >&2
  echo "0 passed, 1 failed"
  exit 1
fi
echo "run_all: testing"
# Two cores: tests that start several processes would starve each other if more than two ran at once.
bazel test "${targets[@]}" "${filters[@]}" --local_test_jobs=2 --keep_going --noshow_progress 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

passed=$(grep -cE '^//[^ ]+ +(\(cached\) +)?PASSED' "$log")
failed=$(grep -cE '^//[^ ]+ +(\(cached\) +)?(FAILED|TIMEOUT|NO STATUS|FLAKY)' "$log")
if ((status != 0 && failed == 0)); then failed=1; fi
echo "$passed passed, $failed failed"
exit $((failed > 0 || passed == 0))
