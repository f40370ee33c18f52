#!/usr/bin/env bash
# The real NCCL is found, loaded and has every function; the program ends with one line: that all worked, or that there is
# no device (exit 77), never a crash.
set -uo pipefail
output=$("$1" 2>&1)
status=$?
echo "$output"
(($(wc -l <<< "$output") == 1)) || { echo "FAIL: more than one line"; exit 1; }
case $status in
  0) [[ $output == *" buckets came over IPC" ]] || { echo "FAIL: exit 0 without the buckets"; exit 1; } ;;
  77) [[ $output == "NCCL 2."*" has every function; no CUDA device: "* ]] || { echo "FAIL: exit 77 without a reason"; exit 1; } ;;
  *) echo "FAIL: exit $status"; exit 1 ;;
esac
