#!/bin/bash
# Builds every tests/fuzz/*_fuzz.cc (or those named) with clang's libFuzzer, address and undefined-behaviour sanitizers,
# and runs each for some seconds.
#
#   tests/fuzz/run.sh [seconds=60] [name...]        e.g. tests/fuzz/run.sh 180 checkpoint_safetensors_fuzz
#
# A target says in its own comments what it is made of, paths from the repository's root:
#   // fuzz sources: engine/base/json.cc engine/...      sources to compile with it
#   // fuzz libraries: -licuuc ...                        libraries to link besides Abseil (optional)
#   // fuzz seeds: engine/checkpoint/testdata/*/config.json   files to start from (optional)
# What was found stays in ${FUZZ_DIR:-/tmp/lockstep-fuzz}/NAME: the corpus, and crash-* when a run failed.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=60
if [[ "${1:-}" =~ ^[0-9]+$ ]]; then
  seconds=$1
  shift
fi
clang=${CLANGXX:-clang++}
command -v "$clang" >/dev/null || { echo "no $clang here: install clang and libclang-rt-14-dev" >&2; exit 77; }
work=${FUZZ_DIR:-/tmp/lockstep-fuzz}
names=("$@")
if [[ ${#names[@]} -eq 0 ]]; then
  for file in tests/fuzz/*_fuzz.cc; do names+=("$(basename "$file" .cc)"); done
fi

field() { sed -n "s|^// fuzz $2: ||p" "tests/fuzz/$1.cc" | tr '\n' ' '; }

mapfile -t abseil < <(grep -o '"-labsl_[a-z_0-9]*"' third_party/system.BUILD | tr -d '"' | sort -u)
failed=0
for name in "${names[@]}"; do
  dir=$work/$name
  mkdir -p "$dir/corpus"
  read -ra sources <<<"$(field "$name" sources)"
  read -ra libraries <<<"$(field "$name" libraries)"
  echo "building $name"
  "$clang" -std=c++20 -O1 -g1 -march=x86-64-v3 -ffp-contract=off -fno-sanitize-recover=all \
    -fsanitize=fuzzer,address,undefined -I. "tests/fuzz/$name.cc" "${sources[@]}" -o "$dir/$name" "${libraries[@]}" \
    -Wl,--as-needed -Wl,--start-group "${abseil[@]}" -Wl,--end-group
  count=0
  # shellcheck disable=SC2046  # the seeds are patterns to expand
  for seed in $(compgen -G "$(field "$name" seeds | tr -d ' ')" || true); do
    cp "$seed" "$dir/corpus/seed-$((count++))"
  done
  echo "running $name for $seconds s from $count seeds"
  if ! (cd "$dir" && "./$name" -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -timeout=30 \
    -print_final_stats=1 corpus >log 2>&1); then
    echo "FAILED: $name, see $dir/log and $dir/crash-*" >&2
    tail -n 30 "$dir/log" >&2
    failed=1
  fi
  grep -E "^stat::number_of_executed_units|^Done" "$dir/log" || true
done
exit $failed
