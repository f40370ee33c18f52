#!/usr/bin/env bash
# What run_all compares a device with is what the emulated kernels give: golden.txt is their output. After a change of a
# contract: bazel run //tests/gpu:cases_emulated > tests/gpu/golden.txt
set -uo pipefail
"$1" | diff - "$2" || { echo "FAIL: golden.txt is not what the emulated kernels give"; exit 1; }
(($(wc -l < "$2") > 60)) || { echo "FAIL: golden.txt is short"; exit 1; }
