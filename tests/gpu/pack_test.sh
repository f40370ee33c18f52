#!/usr/bin/env bash
# The folder that goes to a GPU machine, packed from this build: small enough, nothing in it needs a library that it has
# not but the C library's, CUDA's and the driver's, and it runs in an environment that has nothing: without a device one
# clear line and exit code 77, from run_all and from every program.
set -uo pipefail
pack=$(realpath tests/gpu/pack)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
fail() {
  echo "FAIL: $1"
  failed=1
}

"$pack" --bin="$PWD" --out="$work" || { echo "FAIL: pack: exit $?"; exit 1; }
archive=$work/lockstep_gpu.tar.xz
(($(stat -c %s "$archive") <= 64 << 20)) || fail "the archive has more than 64 MiB"
mkdir "$work/there"
tar -C "$work/there" -xf "$archive" || fail "the archive does not unpack"
folder=$work/there/lockstep_gpu
clean=(env -i PATH=/usr/bin:/bin HOME="$work")

line=$(cd "$work" && "${clean[@]}" "$folder/run_all" "$work/results" 2>&1)
code=$?
echo "run_all: $line"
if [[ $line == *"; a kernel ran"* ]]; then
  ((code == 0)) || fail "a device is here, and run_all ends with $code"
else
  ((code == 77)) || fail "run_all: exit $code, not 77"
  (($(wc -l <<< "$line") == 1)) || fail "run_all: more than one line"
  [[ $line == "no CUDA device: "* ]] || fail "run_all does not say that there is no device"
  for name in device_probe engine_probe gemm_probe bench sync_probe ipc_switch; do
    [[ -x $folder/bin/$name ]] || { echo "$name: not in this build"; continue; }
    line=$("${clean[@]}" LD_LIBRARY_PATH="$folder/lib" "$folder/bin/$name" 2>&1)
    code=$?
    echo "$name: $line"
    ((code == 77)) || fail "$name: exit $code, not 77"
    (($(wc -l <<< "$line") == 1)) || fail "$name: more than one line"
  done
fi
# Every library is the folder's, or the machine's own.
for program in "$folder"/bin/*; do
  while IFS= read -r library; do
    [[ $library =~ /(libc|libm|libdl|libpthread|librt|libresolv|ld-linux-x86-64)\.so ]] || fail "${program##*/} takes $library"
  done < <("${clean[@]}" LD_LIBRARY_PATH="$folder/lib" ldd "$program" | sed -nE 's|.*=> (/[^ ]+) .*|\1|p' | grep -v "^$folder/")
done
# Those that run_all gives to compute-sanitizer find the folder's libraries by themselves.
for name in cases engine_probe; do
  while IFS= read -r library; do
    [[ $library == "$folder"/* || $library =~ /(libc|libm|libdl|libpthread|librt|libresolv|ld-linux-x86-64)\.so ]] ||
      fail "$name takes $library where LD_LIBRARY_PATH is not set"
  done < <("${clean[@]}" ldd "$folder/bin/$name" | sed -nE 's|.*=> (/[^ ]+) .*|\1|p')
done
exit "$failed"
