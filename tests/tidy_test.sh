#!/usr/bin/env bash
# Reads the sources: who includes whom (DESIGN.md section 1), file length, words that announce unfinished work, and paths of
# somebody's machine. One line a finding; none is a pass.
set -uo pipefail
root=$(dirname "$(dirname "$(realpath "$0")")")
cd "$root" || exit 1
findings=0
report() {
  echo "$1"
  findings=$((findings + 1))
}

mapfile -t sources < <(find client deploy engine learner proto rollout_server tests weight_sync -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | sort)
((${#sources[@]} > 100)) || report "only ${#sources[@]} sources found under $root: the test looks in the wrong place"

# folder -> folders that it may include
declare -A allowed=(
  [proto]="proto"
  [engine]="engine proto"
  [weight_sync]="weight_sync engine proto"
  [rollout_server]="rollout_server weight_sync engine proto"
  [learner]="learner weight_sync engine proto"
  [client]="client proto"
  [tests]="client learner rollout_server weight_sync engine proto tests"
)
for file in "${sources[@]}"; do
  folder=${file%%/*}
  while IFS=: read -r line included; do
    case " ${allowed[$folder]:-} " in
      *" $included "*) ;;
      *) report "$file:$line: $folder must not include $included/ (allowed: ${allowed[$folder]:-nothing})" ;;
    esac
  done < <(grep -nE '^#include "(client|engine|learner|proto|rollout_server|weight_sync|tests)/' "$file" |
    sed -E 's/^([0-9]+):#include "([a-z_]+)\/.*/\1:\2/')
  lines=$(wc -l < "$file")
  ((lines <= 600)) || report "$file: $lines lines; a file has one purpose and at most 600"
done

# The words are cut in two so that this file does not find itself.
words='TO''DO|FIX''ME|[Nn]ot impl''emented|[Pp]lace''holder|\bfor n''ow\b'
while IFS= read -r hit; do report "$hit: unfinished work is not announced in the source"; done < <(
  grep -nIE "$words" "${sources[@]}" | cut -d: -f1,2)
machine='/wo''rk/|/home/[a-z]|/tmp/ob''_|\.libr''ary'
while IFS= read -r hit; do report "$hit: a path of somebody's machine"; done < <(
  grep -nIE "$machine" "${sources[@]}" README.md docs/*.md deploy/*.sh tests/*.sh .ci/run .bazelrc 2>/dev/null | cut -d: -f1,2)

if ((findings > 0)); then
  echo "$findings findings"
  exit 1
fi
echo "${#sources[@]} sources are tidy"
