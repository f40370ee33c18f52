#!/usr/bin/env bash
# Reads what ptxas said about every kernel: none may spill registers, or need a stack, beyond what the list allows.
#   spills_test.sh LIST REPORT...      LIST: lines `kernel bytes why`
set -uo pipefail
list=$1
shift
((${#@} > 0)) || { echo "no reports of ptxas: the test looks in the wrong place"; exit 1; }
awk -v list="$list" '
  BEGIN {
    while ((getline line < list) > 0) {
      if (line ~ /^#/ || split(line, field, " ") < 2) continue
      allowed[field[1]] = field[2]
    }
  }
  /Compiling entry function/ { kernel = $0; sub(/.*entry function ./, "", kernel); sub(/. for .*/, "", kernel)
                               arch = $0; sub(/.* for ./, "", arch); sub(/.$/, "", arch); next }
  /Function properties for/ { function_name = $NF; next }
  /bytes spill stores/ {
    ++seen
    match($0, /[0-9]+ bytes stack frame/); stack = substr($0, RSTART) + 0
    match($0, /[0-9]+ bytes spill stores/); stores = substr($0, RSTART) + 0
    match($0, /[0-9]+ bytes spill loads/); loads = substr($0, RSTART) + 0
    limit = 0
    for (name in allowed) if (index(function_name, name) > 0) limit = allowed[name]
    if (stores > limit || (stack > 0 && limit == 0)) {
      printf "%s (%s): %d bytes of spill stores, %d of loads, stack %d; %d allowed by %s\n", function_name, arch, stores, loads, stack, limit, list
      ++wrong
    }
  }
  /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); used = substr($0, RSTART + 5) + 0; if (used > most) most = used }
  END {
    if (seen == 0) { print "the reports name no kernel"; exit 1 }
    printf "%d kernels, at most %d registers, %d spill\n", seen, most, wrong
    exit wrong > 0
  }' "$@"
