#!/usr/bin/env bash
# The weight switch that run_all times on a GPU, over the emulated device, in two real processes: every byte arrives.
set -uo pipefail
ipc_switch=$1
failed=0
fail() {
  echo "FAIL: $1"
  failed=1
}

output=$("$ipc_switch" 5000000 1 2 8 2>&1) || fail "ipc_switch: exit $?"
echo "$output"
for bucket in 1 2 8; do
  grep -qE "^\| 0\.0[01] GB \| $bucket MiB \|( [0-9.]+ ms \|){4} [0-9]+ GB/s \|$" <<< "$output" ||
    fail "no row for buckets of $bucket MiB"
done
for wrong in "some" "100 0" "100 two"; do
  line=$("$ipc_switch" $wrong 2>&1)
  (($? == 1 && $(wc -l <<< "$line") == 1)) || fail "'$wrong': $line"
done
exit "$failed"
