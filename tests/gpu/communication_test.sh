#!/usr/bin/env bash
# The checks of communication that run_all runs on a GPU, over the emulated device: two real processes for the weights.
set -uo pipefail
ipc_switch=$1 nccl_rank=$2
failed=0
fail() {
  echo "FAIL: $1"
  failed=1
}

output=$("$ipc_switch" 5000000 1 2 8 2>&1) || fail "ipc_switch: exit $?"
echo "$output"
for bucket in 1 2 8; do
  grep -qE "^\| 0\.0[01] GB \| $bucket MiB \| [0-9.]+ ms \| [0-9.]+ ms \| [0-9]+ GB/s \|$" <<< "$output" ||
    fail "no row for buckets of $bucket MiB"
done
for wrong in "some" "100 0" "100 two"; do
  line=$("$ipc_switch" $wrong 2>&1)
  (($? == 1 && $(wc -l <<< "$line") == 1)) || fail "'$wrong': $line"
done
output=$("$nccl_rank" 2>&1) || fail "nccl_rank: exit $?"
echo "$output"
[[ $output == NCCL*"a group of one rank joined in "*"and its collectives are right" ]] || fail "nccl_rank says something else"
exit "$failed"
