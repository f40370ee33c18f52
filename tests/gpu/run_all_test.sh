#!/usr/bin/env bash
# The script that waits for a GPU machine decides right. In a checkout: equal results pass, one different result fails,
# no device is 77; "nvcc" is a script that links what each case needs, the kernels are not compiled here. In a packed
# folder, of the emulated programs: every part runs, its figures reach the page, one that fails does not stop the others.
set -uo pipefail
engine=$(realpath "$1") bench=$(realpath "$2") ipc=$(realpath "$3")
here=$(dirname "$(realpath tests/gpu/run_all)")
cases="cat $here/golden.txt"  # golden_test shows that it is what the cases print
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/cuda/bin"
cat > "$work/cuda/bin/nvcc" << 'NVCC'
#!/usr/bin/env bash
for ((i = 1; i <= $#; ++i)); do [[ ${!i} == -o ]] && { next=$((i + 1)); output=${!next}; }; done
case " $* " in
  *" -c "*) : > "$output"; exit ;;
esac
case $output in
  */device_probe) printf '#!/bin/sh\n%s\n' "$PROBE" > "$output" ;;
  */cases) printf '#!/bin/sh\n%s\n' "$CASES" > "$output" ;;
  *) printf '#!/bin/sh\necho copy\n' > "$output" ;;
esac
chmod +x "$output"
NVCC
chmod +x "$work/cuda/bin/nvcc"

failed=0
run=$here/run_all
expect() {  # STATUS TEXT...
  local wanted=$1 status text
  shift
  output=$(cd "$work" && CUDA_HOME=$work/cuda PATH=/usr/bin:/bin "$run" $flags "$work/out" 2>&1)
  status=$?
  ((status == wanted)) || { echo "FAIL: exit $status, not $wanted:"; echo "$output"; failed=1; }
  for text in "$@"; do
    [[ $output == *"$text"* ]] || { echo "FAIL: no '$text' in:"; echo "$output"; failed=1; }
  done
}
flags=
export PROBE CASES
total=$(wc -l < "$here/golden.txt")
PROBE="echo found" CASES=$cases
expect 0 "PASS results: $total results, bit for bit" "SKIP bench: needs the folder" "PASS kernels" "SKIP memcheck: no compute-sanitizer"
CASES_IN_ORDER=$cases
CASES="$cases | sed 's/^swiglu fp16 ./swiglu fp16 z/'"
flags=--only=results,kernels
expect 1 "FAIL results: exit code 1; results.log ends with: 1 of $total results differ" "PASS kernels" "1 passed, 1 failed, 0 skipped"
flags=
CASES="if [ \"\${LOCKSTEP_CUDA_OVERLAP:-1}\" = 0 ]; then $CASES_IN_ORDER; else $CASES; fi"
expect 1 "FAIL results: exit code 1" "PASS results_in_order: $total results, bit for bit"
flags=--only=results,kernels
CASES="exit 1"
expect 1 "the cases did not run to their end without an error; they gave 0 results"
PROBE="echo no CUDA device: none; exit 77"
expect 77 "no CUDA device"
flags=--only=nothing
expect 1 "there is no part 'nothing'"

# A packed folder.
flags=
mkdir -p "$work/packed/bin" "$work/packed/lib" "$work/sanitizer"
cp -L "$here/run_all" "$here/golden.txt" "$here/peer_torch.py" "$here/end_to_end" "$work/packed"
echo c0ffee > "$work/packed/commit"
run=$work/packed/run_all
program() {  # NAME LINES
  printf '#!/bin/sh\n%s\n' "$2" > "$work/packed/bin/$1"
  chmod +x "$work/packed/bin/$1"
}
program device_probe "echo 1 CUDA device, emulated"
program cases "$cases"
program engine_probe "exec $engine"
program gemm_probe "echo no cuBLASLt: none here; exit 77"
program bandwidth "echo 'copy 1 us 2 GB/s'"
program bench "exec $bench --tiny \"\$@\""
program ipc_switch "exec $ipc 1000000 1"
program sync_probe "echo NCCL and IPC work"
printf '#!/bin/sh\nwhile [ "${1#/}" = "$1" ]; do shift; done\nexec "$@"\n' > "$work/cuda/bin/compute-sanitizer"
chmod +x "$work/cuda/bin/compute-sanitizer"
expect 0 "- commit: c0ffee" "PASS results: $total" "PASS racecheck: $total" "PASS engine: the engine ran" "PASS engine_memcheck" \
  "SKIP native: no cuBLASLt" "PASS sync: NCCL" "PASS ipc" "SKIP end_to_end_fp16: the services are not in this folder" "PASS kernels" "PASS bench"
for text in "| results | PASS | $total" "### Decode of tiny, fp16" "| matched | 3 |" "### Training step of tiny" "### Weights to another process" \
  "| 0.00 GB | 1 MiB |" "copy 1 us 2 GB/s" "- date: 20"; do
  grep -qF -- "$text" "$work/out/results.md" || { echo "FAIL: no '$text' in:"; cat "$work/out/results.md"; failed=1; }
done
program sync_probe "echo it broke; exit 1"
program engine_probe "sleep 60"
export LOCKSTEP_PART_SECONDS=1
flags=--only=sync,engine,native,kernels
expect 1 "FAIL sync: exit code 1; sync.log ends with: it broke" "FAIL engine: not done within 1 s" "SKIP native" "PASS kernels" "1 passed, 2 failed, 1 skipped"

# Time that is over ends a part and leaves the others, and the next call goes on with them on the same page.
export LOCKSTEP_PART_SECONDS=60
rm -r "$work/out"
flags="--only=results,engine,sync,kernels --seconds=8"
program sync_probe "echo NCCL and IPC work"
expect 0 "PASS results" "LATE engine: not done in the " "LATE sync: not begun: 8 s are over" "left for another call: --only=engine,sync,kernels" \
  "1 passed, 0 failed, 0 skipped"
program engine_probe "exec $engine"
flags="--only=results,engine,sync,kernels --rest"
expect 0 "PASS engine" "PASS sync" "PASS kernels" "3 passed, 0 failed, 0 skipped"
[[ $output == *"PASS results"* ]] && { echo "FAIL: --rest does again what is done"; failed=1; }
for text in "| results | PASS | $total" "| engine | PASS |" "| sync | PASS |"; do
  grep -qF -- "$text" "$work/out/results.md" || { echo "FAIL: no '$text' in:"; cat "$work/out/results.md"; failed=1; }
done
(($(grep -c '^- commit:' "$work/out/results.md") == 1)) || { echo "FAIL: the page says the commit more than once"; failed=1; }
flags=--seconds=soon
expect 1 "'--seconds=soon' is unknown"
flags=

echo 9.99 > "$work/packed/needs_glibc"
expect 77 "need the C library 9.99"
exit "$failed"
