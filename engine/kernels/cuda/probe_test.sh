#!/usr/bin/env bash
# A program for machines with a GPU links, starts, and ends with one line: that it worked, or what is not there (exit 77),
# never a crash.   probe_test.sh PROGRAM LINE_OF_0 LINE_OF_77: patterns of bash
set -uo pipefail
output=$("$1" 2>&1)
status=$?
echo "$output"
(($(wc -l <<< "$output") == 1)) || { echo "FAIL: more than one line"; exit 1; }
case $status in
  # shellcheck disable=SC2053
  0) [[ $output == $2 ]] || { echo "FAIL: exit 0, and the line is not $2"; exit 1; } ;;
  # shellcheck disable=SC2053
  77) [[ $output == $3 ]] || { echo "FAIL: exit 77, and the line is not $3"; exit 1; } ;;
  *) echo "FAIL: exit $status"; exit 1 ;;
esac
