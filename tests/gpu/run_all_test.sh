#!/usr/bin/env bash
# The script that waits for a GPU machine decides right: equal results pass, one different result fails, no device is 77.
# "nvcc" is a script that links what each case needs; the kernels are not compiled here.
set -uo pipefail
cases=$(realpath "$1")
here=$(dirname "$(realpath tests/gpu/run_all)")
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
expect() {  # STATUS TEXT
  local output status
  output=$(CUDA_HOME=$work/cuda PATH=/usr/bin:/bin "$here/run_all" 2>&1)
  status=$?
  if ((status != $1)) || [[ $output != *"$2"* ]]; then
    echo "FAIL: exit $status, not $1 with '$2':"
    echo "$output"
    failed=1
  fi
}
export PROBE CASES
PROBE="echo found" CASES=$cases
expect 0 "PASS results: $(wc -l < "$here/golden.txt") results, bit for bit"
CASES="$cases | sed 's/^swiglu fp16 ./swiglu fp16 z/'"
expect 1 "FAIL results: 1 of"
CASES="exit 1"
expect 1 "the cases did not run"
PROBE="echo no CUDA device: none; exit 77"
expect 77 "no CUDA device"
exit "$failed"
