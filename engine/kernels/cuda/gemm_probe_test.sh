#!/usr/bin/env bash
# The probe links, starts, and ends with one line: that native and matched products agree, or what is not there (exit 77),
# never a crash.
set -uo pipefail
output=$("$1" 2>&1)
status=$?
echo "$output"
(($(wc -l <<< "$output") == 1)) || { echo "FAIL: more than one line"; exit 1; }
case $status in
  0) [[ $output == *"are equal by cuBLASLt"* ]] || { echo "FAIL: exit 0 without results"; exit 1; } ;;
  77) [[ $output == "no CUDA device: "* || $output == "no cuBLASLt: "* ]] || { echo "FAIL: exit 77 without a reason"; exit 1; } ;;
  *) echo "FAIL: exit $status"; exit 1 ;;
esac
