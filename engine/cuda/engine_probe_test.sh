#!/usr/bin/env bash
# The probe ends with one line: that the engine ran, or that there is no device (exit 77), never a crash.
set -uo pipefail
output=$("$1" 2>&1)
status=$?
echo "$output"
(($(wc -l <<< "$output") == 1)) || { echo "FAIL: more than one line"; exit 1; }
case $status in
  0) [[ $output == "the engine ran: mu == pi for 25 tokens, gradient norm "* ]] || { echo "FAIL: it did not say so"; exit 1; } ;;
  77) [[ $output == "no CUDA device: "* ]] || { echo "FAIL: exit 77 without a reason"; exit 1; } ;;
  *) echo "FAIL: exit $status"; exit 1 ;;
esac
